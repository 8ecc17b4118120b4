"""Baselines and filters over the rewards of a rollout [P, K]: K responses to each of P prompts."""

from __future__ import annotations

import torch
from openrlhf.trainer.ppo_utils.experience import Experience


def by_prompt(experiences: list[Experience], samples_per_prompt: int) -> torch.Tensor:
    """The rewards [P, K] of a rollout, in the order of its prompts."""
    rewards_N = torch.cat([batch.rewards for batch in experiences]).float()
    order_N = torch.tensor([i for batch in experiences for i in batch.index])
    return torch.empty_like(rewards_N).scatter_(0, order_N, rewards_N).view(-1, samples_per_prompt)


def uniform_groups(rewards_PK: torch.Tensor) -> torch.Tensor:
    """Which prompts [P] have the same reward for all their responses."""
    return rewards_PK.amax(1) == rewards_PK.amin(1)


def exactly_uniform(rewards_PK: torch.Tensor) -> torch.Tensor:
    """The rewards [P, K], with 0 for all of a uniform group.

    Upstream's `group_norm` divides by a standard deviation, which is 0 there, plus 1e-9: of eight
    rewards of 1.05, whose mean is one rounding off, it makes advantages of -119.
    """
    return torch.where(uniform_groups(rewards_PK)[:, None], 0.0, rewards_PK)


def less_baseline(rewards_PK: torch.Tensor) -> torch.Tensor:
    """The rewards [P, K] minus the shrinkage baseline."""
    return rewards_PK - shrinkage_baseline(rewards_PK)


def shrinkage_baseline(rewards_PK: torch.Tensor) -> torch.Tensor:
    """Baselines [P, K]: the mean of a response's group, shrunk to that of the other groups.

    It is (1 - lam) times the mean of the group's other responses plus lam times the mean of the
    other groups (arXiv 2511.03710). Nothing of it depends on the response itself, which keeps the
    policy gradient unbiased.
    """
    prompts, samples = rewards_PK.shape
    own_PK = (rewards_PK.sum(1, keepdim=True) - rewards_PK) / (samples - 1)
    means_P = rewards_PK.mean(1)
    others_P = (means_P.sum() - means_P) / (prompts - 1)
    return torch.lerp(own_PK, others_P[:, None].expand_as(own_PK), shrinkage_weights(rewards_PK)[:, None])


def shrinkage_weights(rewards_PK: torch.Tensor) -> torch.Tensor:
    """The weight lam [P] of the other groups, 0 to 1, estimated for each prompt on the others.

    It is (s2_within / K) / (s2_within / K + s2_between), where s2_between is the variance of the
    means of groups less what chance within groups adds to it. The prompt's own rewards are left
    out: with them the gradient would be too small, by 1 % at 16 prompts x 8 and 8 % at 8 x 2.
    """
    prompts, samples = rewards_PK.shape
    others_PO = ~torch.eye(prompts, dtype=torch.bool)
    rewards_POK = rewards_PK.expand(prompts, -1, -1)[others_PO].view(prompts, prompts - 1, samples)
    noise_P = rewards_POK.var(2).mean(1) / samples
    spread_P = torch.maximum(rewards_POK.mean(2).var(1), noise_P)
    return torch.where(spread_P > 0, noise_P / spread_P, 0.0)


def drop_uniform(experiences: list[Experience], uniform_P: torch.Tensor, samples_per_prompt: int) -> None:
    """Takes uniform groups out of the policy's loss, in place: their advantages become 0.

    So does their share of the KL penalty. The other groups weigh more, by the number of prompts.
    """
    kept = int((~uniform_P).sum())
    weights_N = (~uniform_P).float().repeat_interleave(samples_per_prompt) * len(uniform_P) / max(kept, 1)
    for batch in experiences:
        batch.advantages = batch.advantages * weights_N[batch.index][:, None]
