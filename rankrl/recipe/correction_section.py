"""The section `correction` of a recipe: how the loss treats what engine and trainer see apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from rankrl.recipe.require import require

BOUNDS = {"token_clip": (0.0, 2.0), "token_mask": (0.5, 5.0), "sequence_mask": (0.99, 1.01)}
"""Method -> default bounds of the ratio."""
DEFAULT = {"bfloat16": "token_clip", "float16": "token_clip", "float32": "none"}
"""Precision of the base -> default method."""


@dataclass(frozen=True)
class Correction:
    """The weight of a token in the policy's loss, by the ratio p_trainer / p_engine at the rollout.

    The engine samples the tokens, the trainer learns from them as if it had: their numerics differ.
    """

    method: Optional[str] = None
    """none; token_clip (the ratio, clipped to the bounds); token_mask (the ratio, 0 out of bounds);
    sequence_mask (the ratio, 0 for all of a response whose geometric mean ratio is out of bounds).
    Null takes token_clip at a scale in bfloat16 or float16 or with engine.one_step_off, and none in
    float32, where the ratio is 1."""
    low: Optional[float] = None
    """Lower bound of the ratio. Null takes the method's: 0 for token_clip, 0.5 for token_mask, 0.99
    for sequence_mask."""
    high: Optional[float] = None
    """Upper bound of the ratio. Null takes the method's: 2, 5 and 1.01."""

    def check(self) -> None:
        known = ("none", *BOUNDS)
        require(self.method is None or self.method in known, "correction.method", self.method, ", ".join(known))
        bounded, fix = self.method in BOUNDS, f"{self.method or 'a method that is not named'} has no bounds"
        low, high = self.low, self.high
        require(bounded or low is None, "correction.low", low, "null", fix)
        require(bounded or high is None, "correction.high", high, "null", fix)
        require(low is None or 0 <= low < 1, "correction.low", low, "at least 0 and below 1, the right ratio")
        require(high is None or high > 1, "correction.high", high, "above 1, the right ratio")

    def at(self, dtype: str, one_step_off: bool = False) -> Correction:
        """This section with what its nulls mean for a base in precision `dtype`.

        Samples that are `one_step_off` have to be corrected. Raises ValueError if they are not.
        """
        method = self.method or ("token_clip" if one_step_off else DEFAULT[dtype])
        why = "with engine.one_step_off samples are of the policy before"
        require(not one_step_off or method != "none", "correction.method", method, ", ".join(BOUNDS), why)
        fine = not one_step_off or method != "sequence_mask" or self.high is not None
        fix = "its default bounds are for rounding, and would leave out nearly all samples that are one step old"
        require(fine, "correction.method", method, "sequence_mask with bounds of its own", fix)
        low, high = BOUNDS.get(method, (None, None))
        return Correction(method, low if self.low is None else self.low, high if self.high is None else self.high)

    def __str__(self) -> str:
        return f"{self.method}, ratio {self.low:g} to {self.high:g}" if self.method in BOUNDS else str(self.method)
