"""The section `critic` of a recipe: the value model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from rankrl.recipe.require import require

AGREED_SHARE = 0.2
"""Share of the response tokens that two critics mask by default (arXiv 2510.01656)."""


@dataclass(frozen=True)
class Critic:
    """The value model: an adapter and a head of its own, independent of the policy's rank.

    There is one with advantage.method=gae only.
    """

    rank: int = 32
    """LoRA rank of the value adapter."""
    alpha: float = 32.0
    """LoRA alpha of the value adapter."""
    lr: Optional[float] = None
    """Adam learning rate; null takes the scale's reference."""
    value_clip: float = 0.5
    """PPO value clip range (reward units)."""
    max_norm: float = 1.0
    """Global gradient norm above which the critic's gradient is scaled down."""
    warmup_steps: int = 0
    """PPO steps at the start in which only the critic learns."""
    lambda_: Optional[float] = None
    """Lambda of the return that the critic learns (key: critic.lambda); null takes gae_lambda."""
    ensemble: int = 1
    """Number of value adapters and heads, 1 or 2. Two learn from disjoint halves of the prompts of
    each rollout, and their mean is the value."""
    mask_agreed: Optional[float] = None
    """Share of a rollout's response tokens, those on whose value the two agree most, that the
    policy does not learn from; null is 0.2 with ensemble=2."""

    @property
    def masked_share(self) -> float:
        """Share of the response tokens that the policy does not learn from; 0 with one critic."""
        default = AGREED_SHARE if self.ensemble == 2 else 0.0
        return default if self.mask_agreed is None else self.mask_agreed

    def check(self) -> None:
        """Raises ValueError for a value out of range, or one without effect."""
        require(self.rank >= 1, "critic.rank", self.rank, "an integer of at least 1")
        for name in ("alpha", "value_clip"):
            require(getattr(self, name) > 0, f"critic.{name}", getattr(self, name), "above 0")
        require(self.lr is None or self.lr > 0, "critic.lr", self.lr, "above 0")
        require(self.max_norm >= 0, "critic.max_norm", self.max_norm, "at least 0")
        require(self.warmup_steps >= 0, "critic.warmup_steps", self.warmup_steps, "at least 0")
        own = self.lambda_
        require(own is None or 0 < own <= 1, "critic.lambda", own, "above 0 and at most 1, or null", "null: gae_lambda")
        require(self.ensemble in (1, 2), "critic.ensemble", self.ensemble, "1 or 2")
        share = self.mask_agreed
        require(share is None or 0 <= share < 1, "critic.mask_agreed", share, "a share from 0 to below 1, or null")
        alone, why = self.ensemble == 1 and share is not None, "one critic agrees with itself: critic.ensemble=2"
        require(not alone, "critic.mask_agreed", share, "null", why)
