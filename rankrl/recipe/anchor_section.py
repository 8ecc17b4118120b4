"""The section `kl_anchor` of a recipe: what the KL penalty is measured to, and where it acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from rankrl.recipe.require import require

REFERENCES = ("base", "ema")
PLACES = ("reward", "loss")
ESTIMATORS = ("k2", "k3")
"""Estimators whose gradient is that of a KL: k1's mean is 0 there."""


@dataclass(frozen=True)
class KLAnchor:
    """The policy that the KL penalty holds the trained one to. Its level is `rules.kl`."""

    reference: str = "base"
    """`base`, or `ema`: an adapter of its own that follows the trained one (arXiv 2602.04417)."""
    rate: float = 0.05
    """Share of the way to the trained adapter that the anchor goes after a PPO step, for `ema`."""
    place: str = "reward"
    """`reward`: the penalty is subtracted from the rewards, token by token, before advantages are
    made. `loss`: it is a term of the policy's loss."""
    estimator: Optional[str] = None
    """Estimator of the KL in the loss, `k2` or `k3`; null is k2, whose gradient is that of the
    reverse KL. The reward has k1."""

    @property
    def given(self) -> bool:
        """Whether it is not the default."""
        return self != KLAnchor()

    @property
    def moves(self) -> bool:
        """Whether the anchor is an adapter that follows the trained one."""
        return self.reference == "ema"

    @property
    def in_loss(self) -> bool:
        """Whether the penalty is a term of the loss."""
        return self.place == "loss"

    @property
    def used_estimator(self) -> str:
        """The estimator that acts."""
        return (self.estimator or ESTIMATORS[0]) if self.in_loss else "k1"

    def check(self) -> None:
        """Raises ValueError for a value out of range, or one without effect."""
        require(self.reference in REFERENCES, "kl_anchor.reference", self.reference, " or ".join(REFERENCES))
        require(self.place in PLACES, "kl_anchor.place", self.place, " or ".join(PLACES))
        acts, fix = self.moves or self.rate == KLAnchor.rate, "kl_anchor.reference=ema has it"
        require(acts, "kl_anchor.rate", self.rate, f"nothing: reference {self.reference!r} does not move", fix)
        fix = "1 is the policy before its last update; 0 is the base: kl_anchor.reference=base"
        require(0 < self.rate <= 1, "kl_anchor.rate", self.rate, "above 0 and at most 1", fix)
        given, fix = self.estimator, "kl_anchor.place=loss has it"
        require(given is None or self.in_loss, "kl_anchor.estimator", given, "nothing: the reward has k1", fix)
        allowed, why = "k2, k3, or null", "the mean gradient of k1 is 0"
        require(given is None or given in ESTIMATORS, "kl_anchor.estimator", given, allowed, why)

    def check_level(self, level: float, rank: int) -> None:
        """Raises ValueError if the section changes a penalty whose level is 0 at `rank`."""
        fine, allowed = level > 0 or not self.given, f"its default: the KL level at rank {rank} is 0"
        require(fine, "kl_anchor", str(self), allowed, "rules.kl above 0, or no kl_anchor")
