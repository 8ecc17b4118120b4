"""The section `trust_region` of a recipe: the rate follows the KL of the policy's steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Optional

from rankrl.recipe.require import require

CURVES = Path(__file__).parents[1] / "scales" / "curves"
"""The recorded curves, a JSON file for each scale that has one. `rankrl curve` makes them."""
REFERENCE = "reference"
MADE_BY = "rankrl curve DIR records one from finished runs"


@dataclass(frozen=True)
class TrustRegion:
    """The policy's rate after a step, by the KL between the policies before and after it.

    The scheduled rate is multiplied by a factor, which starts at 1 and moves, once per PPO step, by
    clip(sqrt(target / kl_step), 1/1.5, 1.5). It does not rise during the warm-up.
    """

    target: Optional[float | int | str] = None
    """KL per PPO step that is steered to (nats per token); `reference`: what runs of the reference
    rank had after the same share of their steps; null is off."""
    low: float = 0.05
    """Least factor on the scheduled rate."""
    high: float = 20.0
    """Largest factor on the scheduled rate."""
    curve: tuple[float, ...] = ()
    """For `reference`, KL per PPO step (nats per token) in equal shares of a run, first to last.
    Empty takes the curve that is shipped for the scale."""

    @property
    def on(self) -> bool:
        return self.target is not None

    def check(self) -> None:
        """Raises ValueError for a value out of range, or one without effect."""
        target, unset = self.target, TrustRegion
        number = isinstance(target, (int, float)) and 0 < target < inf
        allowed = f"a KL above 0 and finite (nats per token), {REFERENCE}, or null"
        require(target in (None, REFERENCE) or number, "trust_region.target", target, allowed, "null is off")
        for name in ("low", "high"):
            value, fix = getattr(self, name), "it is off: set trust_region.target"
            require(self.on or value == getattr(unset, name), f"trust_region.{name}", value, "nothing", fix)
        require(0 < self.low <= 1, "trust_region.low", self.low, "above 0 and at most 1, the factor at the start")
        require(1 <= self.high < inf, "trust_region.high", self.high, "at least 1, the factor at the start, and finite")
        curve = list(self.curve)
        allowed, fix = f"nothing unless trust_region.target={REFERENCE}", "a number is the target of every step"
        require(not curve or target == REFERENCE, "trust_region.curve", curve, allowed, fix)
        fine = all(0 < kl < inf for kl in curve)
        require(fine, "trust_region.curve", curve, "KLs above 0 and finite (nats per token)", MADE_BY)

    def at(self, scale: str) -> TrustRegion:
        """This section with the shipped curve of a scale, if it needs one."""
        if self.target != REFERENCE or self.curve:
            return self
        curve, known = shipped_curve(scale), ", ".join(sorted(path.stem for path in CURVES.glob("*.json")))
        fix = f"{MADE_BY}: give it as trust_region.curve, or give a number"
        allowed = f"a KL at scale {scale}, which has no recorded curve (scales that have one: {known})"
        require(bool(curve), "trust_region.target", REFERENCE, allowed, fix)
        return replace(self, curve=curve)

    def target_at(self, share: float) -> float:
        """The KL that a step should have after this share of the policy's steps, below 1."""
        if self.target == REFERENCE:
            return self.curve[int(share * len(self.curve))]
        assert self.target is not None
        return float(self.target)

    def __str__(self) -> str:
        whose = "that of the reference curve" if self.target == REFERENCE else f"{self.target:g}"
        return f"KL per step {whose}, factor on the rate {self.low:g} to {self.high:g}"


@cache
def shipped_curve(scale: str) -> tuple[float, ...]:
    """The shipped curve of a scale by its name; () if there is none."""
    path = CURVES / f"{scale}.json"
    return tuple(json.loads(path.read_text())["kl_step"]) if path.is_file() else ()
