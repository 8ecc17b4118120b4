"""What a reader of a report calls equal, what the ranks are compared with, and what is reliable."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from rankrl.recipe.require import require


@dataclass(frozen=True)
class Limits:
    """The options of `rankrl report` that change what is claimed, but no statistic."""

    margin: float = 0.01
    """Gain that a rank may lose and still be called non-inferior."""
    reference: int = 32
    """Rank that the others of an arm are compared with; the largest where it is missing."""
    risk: float = 0.1
    """Reliable means a smaller share of runs that end below the base."""

    def __post_init__(self) -> None:
        fine = isfinite(self.margin) and 1e-6 <= self.margin < 1
        require(fine, "--margin", self.margin, "a gain of at least 0.000001 and below 1", "0.01 is one point")
        require(self.reference >= 1, "--reference", self.reference, "a rank of at least 1")
        require(0 < self.risk < 1, "--risk", self.risk, "a share above 0 and below 1")

    def reference_of(self, ranks: list[int]) -> int:
        """The reference among `ranks`, which are those of an arm."""
        return self.reference if self.reference in ranks else max(ranks)


DEFAULT = Limits()
