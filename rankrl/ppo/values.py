"""Values of a rollout: lambdas of the GAE, how well they are explained, and two critics' mean.

Axes: B samples of a micro-batch, A positions (upstream's action axis), N response tokens.
"""

from __future__ import annotations

import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from rankrl.ppo.rollout import tokens_by_position


def length_lambda(action_mask_BA: torch.Tensor, alpha: float) -> torch.Tensor:
    """Lambda [B] of the policy by response length l: 1 - 1 / (alpha l), at least 0 (VAPO)."""
    return (1 - 1 / (alpha * action_mask_BA.sum(1).clamp(min=1))).clamp(min=0)


def explained_variance(returns_N: torch.Tensor, values_N: torch.Tensor) -> float | None:
    """1 - Var(G - V) / Var(G): 1 if the values say all, 0 if they say as much as a constant.

    None where all returns are equal (sd below 1e-4): there is nothing to explain.
    """
    spread = returns_N.double().var(correction=0)
    left = (returns_N.double() - values_N.double()).var(correction=0)
    return (1 - left / spread).item() if spread > 1e-8 else None


def dealt(order: list[int], samples_per_prompt: int, critics: int) -> list[list[int]]:
    """The places of samples in a rollout, dealt to critics by prompt: every other prompt to each.

    Prompts are in the order of the seed, so that is by lot.
    """
    return [[i for i in order if i // samples_per_prompt % critics == critic] for critic in range(critics)]


def set_mean_values(experiences: list[Experience], seconds: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Makes the mean of two critics the value of each micro-batch, in place.

    `seconds` are the values [B, A] by the second critic. Returns those of the first and of the
    second critic.
    """
    firsts = [batch.values for batch in experiences]
    for batch, second_BA in zip(experiences, seconds, strict=True):
        batch.values = (batch.values + second_BA) / 2
    return [firsts, seconds]


def gaps(experiences: list[Experience], values: list[list[torch.Tensor]]) -> torch.Tensor:
    """|V1 - V2| [N] of the rollout's response tokens, by two critics."""
    found = [(first - second).abs() for first, second in zip(*values, strict=True)]
    return torch.cat([gap[e.action_mask.bool()] for gap, e in zip(found, experiences, strict=True)]).float()


def mask_agreed(experiences: list[Experience], gaps_N: torch.Tensor, share: float) -> None:
    """Takes the share of response tokens with the smallest gaps out of the policy's loss, in place.

    Their advantages become 0, their KL penalty included. Of equal gaps the first ones are taken.
    """
    kept_N = torch.ones_like(gaps_N)
    kept_N[gaps_N.argsort(stable=True)[: round(share * len(gaps_N))]] = 0
    tokens = [int(batch.action_mask.sum()) for batch in experiences]
    for batch, kept in zip(experiences, kept_N.split(tokens), strict=True):
        batch.advantages[batch.action_mask.bool()] *= kept


def value_metrics(
    experiences: list[Experience], returns: list[torch.Tensor], values: list[list[torch.Tensor]]
) -> dict[str, float | None]:
    """What metrics.jsonl says of the values of a rollout, which are from before its update.

    `returns` are the Monte-Carlo returns [B, A], `values` each critic's own.
    """
    values_N = tokens_by_position(experiences, "values")
    returns_N = torch.cat([G[e.action_mask.bool()] for G, e in zip(returns, experiences, strict=True)])
    found = {"explained_variance": explained_variance(returns_N, values_N), "value_mean": values_N.mean().item()}
    return found | ({"value_gap": gaps(experiences, values).mean().item()} if len(values) == 2 else {})
