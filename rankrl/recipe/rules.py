"""The rules of rank: pure functions from the rank r and a reference point to one hyperparameter.

Notation: r0 is the reference rank (32 unless set), s = alpha / r the scale of the update, x0 the value of x at r0. Derivations and
their doubts: with Adam and B = 0 the first step moves the policy by KL(r) = K (s lr r)^2 (1 + c / r), a coherent part and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from rankrl.recipe.scale import Reference
from rankrl.recipe.schema import Recipe, Rule


@dataclass(frozen=True)
class Knob:
    """One derived hyperparameter, with where it comes from."""

    value: float
    rule: str
    formula: str
    reference: str
    source: str


def power(r: int, x0: float, r0: int, exponent: float) -> float:
    """x0 (r / r0)^p. For alpha: p = 0 keeps alpha, 1/2 is rsLoRA (arXiv:2312.03732), 1 keeps alpha / r."""
    return x0 * (r / r0) ** exponent


def equal_kl(r: int, x0: float, r0: int, c: float) -> float:
    """x0 sqrt((1 + c / r0) / (1 + c / r)): the rate whose first step has the KL of rank r0, at constant alpha.

    c = 0 leaves the rate independent of rank ("LoRA Without Regret"). A first-step law: it says nothing of how fast A rotates.
    """
    return x0 * sqrt((1 + c / r0) / (1 + c / r))


def gradient_scale(r: int, x0: float, r0: int, alpha: float, alpha0: float) -> float:
    """x0 (s sqrt r) / (s0 sqrt r0): the gradient norm of (A, B) grows with s sqrt r; a fixed bound would clip low rank harder."""
    return x0 * (alpha / r * sqrt(r)) / (alpha0 / r0 * sqrt(r0))


def warmup_by_rank(r: int, x0: float) -> float:
    """x0 at r >= 8, at least 10 % at r <= 4, midway between: low rank takes noisier first sign steps (conjecture)."""
    long = max(x0, 0.1)
    return x0 if r >= 8 else long if r <= 4 else (x0 + long) / 2


FORMULAS = {
    "constant": "x0",
    "power": "x0 (r/r0)^{exponent:g}",
    "equal_kl": "x0 sqrt((1 + {c:g}/r0) / (1 + {c:g}/r))",
    "gradient_scale": "x0 (s sqrt r) / (s0 sqrt r0), s = alpha/r",
    "by_rank": "x0 at r >= 8, max(x0, 0.1) at r <= 4",
    "table": "table[r]",
}
SOURCES = {
    "constant": "reference point",
    "power": "LoRA (2106.09685), rsLoRA (2312.03732)",
    "equal_kl": "first-step KL under Adam; c <= 12 by LoRA Without Regret",
    "gradient_scale": "gradient norm of (A, B) at the first step",
    "by_rank": "conjecture: suppresses noisy first steps",
    "table": "recipe",
}


def _value(knob: str, rule: Rule, r: int, x0: float, alpha: Callable[[int], float]) -> float:
    if rule.rule == "power":
        assert rule.exponent is not None
        return power(r, x0, rule.at_rank, rule.exponent)
    if rule.rule == "equal_kl":
        assert rule.c is not None
        return equal_kl(r, x0, rule.at_rank, rule.c)
    if rule.rule == "gradient_scale":
        return gradient_scale(r, x0, rule.at_rank, alpha(r), alpha(rule.at_rank))
    if rule.rule == "by_rank":
        return warmup_by_rank(r, x0)
    if rule.rule == "table":
        if r not in (rule.table or {}):
            raise ValueError(
                f"rules.{knob}.table: got no entry for rank {r}, allowed: one entry for every rank of the grid"
            )
        return rule.table[r]  # type: ignore[index]
    return x0


def knob(recipe: Recipe, reference: Reference, name: str, r: int) -> Knob:
    """One hyperparameter at rank r. An explicit `value` in the recipe replaces the scale's reference point."""
    rule: Rule = getattr(recipe.rules, name)
    explicit = rule.value is not None
    x0 = float(getattr(reference, name, 1.0) if rule.value is None else rule.value)
    value = _value(name, rule, r, x0, lambda at: knob(recipe, reference, "alpha", at).value)
    formula = FORMULAS[rule.rule].format(exponent=rule.exponent or 0, c=rule.c or 0)
    where = (
        f"x0 = {x0:g} at r0 = {rule.at_rank} ({'recipe' if explicit else 'scale'})"
        if rule.rule != "table"
        else "recipe"
    )
    return Knob(value, rule.rule, formula, where, SOURCES[rule.rule])


def derive(recipe: Recipe, reference: Reference, r: int) -> dict[str, Knob]:
    """Every rank-dependent hyperparameter at rank r."""
    return {name: knob(recipe, reference, name, r) for name in recipe.rules.__dataclass_fields__}
