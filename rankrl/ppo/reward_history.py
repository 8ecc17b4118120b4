"""What a run remembers of its prompts' rewards: the baseline of `advantage.method=history`."""

from __future__ import annotations

from typing import Any

import torch

from rankrl.recipe.advantage_section import Advantage


class RewardHistory:
    """Discounted sums of rewards, and how many, by prompt and over all prompts."""

    def __init__(self, section: Advantage):
        self.discount, self.strength = section.discount, section.prior_strength
        self.by_prompt: dict[str, tuple[float, float]] = {}
        """Prompt -> (discounted sum of its rewards, discounted number of them)."""
        self.total, self.count = 0.0, 0.0
        """The same of all prompts, discounted once per rollout."""

    def less_baseline(self, prompts: list[str], rewards_PK: torch.Tensor) -> torch.Tensor:
        """The rewards [P, K] minus the baseline of each response; then they are remembered.

        The baseline is the posterior mean of a Beta-Bernoulli model with a discounted past (arXiv
        2603.18444), without the response itself:

            (n m + past sum + sum of the group's others) / (n + past number + K - 1)

        n is the strength of the prior, in responses, and m its mean: that of the other prompts'
        responses, in this rollout and in the discounted ones before. The mean is linear, so rewards
        that are shaped, an affine function of the verdict, do as well as verdicts.
        """
        prior_P = self._prior_means(rewards_PK)
        past = torch.tensor([self.by_prompt.get(prompt, (0.0, 0.0)) for prompt in prompts], dtype=torch.float64)
        sums_P, counts_P = (self.discount * past).unbind(1)
        rewards = rewards_PK.double()
        others_PK = rewards.sum(1, keepdim=True) - rewards
        known_P = self.strength + counts_P + rewards.shape[1] - 1
        baselines_PK = (self.strength * prior_P + sums_P)[:, None] + others_PK
        baselines_PK = torch.where(known_P > 0, 1 / known_P, 0.0)[:, None] * baselines_PK
        self._remember(prompts, rewards)
        return (rewards - baselines_PK).to(rewards_PK.dtype)

    def _prior_means(self, rewards_PK: torch.Tensor) -> torch.Tensor:
        """The mean reward [P] of the others than each prompt; 0 where there is none yet."""
        sums_P = rewards_PK.double().sum(1)
        totals_P = self.discount * self.total + sums_P.sum() - sums_P
        count = self.discount * self.count + rewards_PK[1:].numel()
        return totals_P / count if count else torch.zeros_like(totals_P)

    def _remember(self, prompts: list[str], rewards_PK: torch.Tensor) -> None:
        samples = rewards_PK.shape[1]
        for prompt, reward in zip(prompts, rewards_PK.sum(1).tolist(), strict=True):
            total, count = self.by_prompt.get(prompt, (0.0, 0.0))
            self.by_prompt[prompt] = (self.discount * total + reward, self.discount * count + samples)
        self.total = self.discount * self.total + rewards_PK.sum().item()
        self.count = self.discount * self.count + rewards_PK.numel()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        past = {prompt: [*pair] for prompt, pair in self.by_prompt.items()}
        return {"by_prompt": past, "total": self.total, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.by_prompt = {prompt: (total, count) for prompt, (total, count) in state["by_prompt"].items()}
        self.total, self.count = state["total"], state["count"]
