"""The section `average` of a recipe: an average of the last adapters, beside the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from rankrl.recipe.require import require

SHARES = {"mean": 0.25, "trajectory": 1.0}
"""Method -> share of the run that its snapshots are of, by default."""


@dataclass(frozen=True)
class Average:
    """A second adapter, which is evaluated and saved beside the last one. Training ignores it."""

    method: Optional[str] = None
    """`mean`: the mean of delta W over the snapshots, brought back to the adapter's rank;
    `trajectory`: what a line fitted to their course along one direction per module says of the last
    step (rank 1; arXiv 2605.21468); null is off."""
    share: Optional[float] = None
    """Share of the PPO steps, at the end, that the snapshots are of; null is a quarter for `mean`,
    all for `trajectory`."""
    snapshots: int = 8
    """Number of snapshots, evenly spaced; the last is the last adapter."""

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return self.method is not None

    def steps(self, steps: int) -> tuple[int, ...]:
        """The PPO steps, counted from 1, after which a run of `steps` takes a snapshot."""
        if self.method is None:
            return ()
        window = max((self.share or SHARES[self.method]) * steps, 1.0)
        taken = {max(steps - round(window * i / self.snapshots), 1) for i in range(self.snapshots)}
        return tuple(sorted(taken))

    def check(self) -> None:
        """Raises ValueError for a value out of range, or one without effect."""
        require(self.method in (None, *SHARES), "average.method", self.method, f"{', '.join(SHARES)}, or null")
        for name in ("share", "snapshots"):
            value, fix = getattr(self, name), "average.method=mean"
            require(self.on or value == getattr(Average, name), f"average.{name}", value, "nothing: it is off", fix)
        share = self.share
        require(share is None or 0 < share <= 1, "average.share", share, "a share above 0 and at most 1, or null")
        require(
            2 <= self.snapshots <= 64, "average.snapshots", self.snapshots, "2 to 64", "each is a copy of the adapter"
        )
