"""Hyperparameters at a rank, computed from a recipe and the scale's reference point. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rankrl.recipe.first_step import FirstSteps, Interval
from rankrl.recipe.rules import RULES
from rankrl.recipe.rules_section import Rule
from rankrl.recipe.scale import Reference
from rankrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Knob:
    """A hyperparameter at a rank: its value and the rule, formula, reference point and source."""

    value: float
    rule: str
    formula: str
    reference: str
    source: str
    ci95: Interval | None = None
    """Interval of a value that was measured."""
    pending: bool = False
    """Whether the value is still to be measured, before the run; until then it is that of the
    reference rank."""

    def recorded(self) -> dict[str, Any]:
        """What run.yaml has of it. Only measured values have an interval."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("ci95", "pending")}
        return plain | ({"ci95": [*self.ci95]} if self.ci95 else {})

    def evidence(self, name: str) -> str:
        """The evidence for its rule at hyperparameter `name`: measured here, derived, conjecture,
        or none."""
        return RULES[self.rule].evidence_at(name)


def knob(recipe: Recipe, reference: Reference, name: str, r: int, found: FirstSteps | None = None) -> Knob:
    """The hyperparameter `name` at rank `r`; a `value` in the recipe overrides the scale's.

    `found` is what a rule is given that needs a measurement on the base.
    """
    rule: Rule = getattr(recipe.rules, name)
    row, explicit = RULES[rule.rule], rule.value is not None
    own = recipe.optimizer.by_knob.get(name)
    x0 = float(rule.value if explicit else getattr(reference, name, 1.0) if own is None else own)  # type: ignore[arg-type]
    given: dict[str, Any] = {"knob": name, "r": r, "x0": x0, "r0": rule.at_rank, **rule.options}
    if {"alpha", "alpha0"} & {*row.takes}:
        given |= {"alpha": alpha_at(recipe, reference, r), "alpha0": alpha_at(recipe, reference, rule.at_rank)}
    where = f"x0 = {x0:g} at r0 = {rule.at_rank} ({'scale' if not explicit and own is None else 'recipe'})"
    words = (rule.rule, row.formula.format_map(given), where if "x0" in row.takes else "recipe")
    if row.measured and found is None:
        return Knob(x0, *words, row.source, pending=True)
    if row.measured and found is not None:
        return Knob(found.rate(r), *words, found.told(r), found.rate_ci95(r))
    return Knob(row.value(*(given[taken] for taken in row.takes)), *words, row.source)


def alpha_at(recipe: Recipe, reference: Reference, rank: int) -> float:
    """LoRA alpha of a module of this rank; the run's alpha if the module has the run's rank."""
    return knob(recipe, reference, "alpha", rank).value


def derive(recipe: Recipe, reference: Reference, r: int, found: FirstSteps | None = None) -> dict[str, Knob]:
    """Name -> every rank-dependent hyperparameter at rank `r`."""
    return {name: knob(recipe, reference, name, r, found) for name in recipe.rules.given}
