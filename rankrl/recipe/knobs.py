"""Hyperparameters at a rank, computed from a recipe and the scale's reference point. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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

    def evidence(self, name: str) -> str:
        """The evidence for its rule at hyperparameter `name`: measured here, derived, conjecture,
        or none."""
        return RULES[self.rule].evidence_at(name)


def knob(recipe: Recipe, reference: Reference, name: str, r: int) -> Knob:
    """The hyperparameter `name` at rank `r`; a `value` in the recipe overrides the scale's."""
    rule: Rule = getattr(recipe.rules, name)
    row, explicit = RULES[rule.rule], rule.value is not None
    x0 = float(rule.value if explicit else getattr(reference, name, 1.0))  # type: ignore[arg-type]
    given: dict[str, Any] = {"knob": name, "r": r, "x0": x0, "r0": rule.at_rank, **rule.options}
    if {"alpha", "alpha0"} & {*row.takes}:
        given |= {"alpha": alpha_at(recipe, reference, r), "alpha0": alpha_at(recipe, reference, rule.at_rank)}
    value = row.value(*(given[taken] for taken in row.takes))
    where = f"x0 = {x0:g} at r0 = {rule.at_rank} ({'recipe' if explicit else 'scale'})"
    return Knob(value, rule.rule, row.formula.format_map(given), where if "x0" in row.takes else "recipe", row.source)


def alpha_at(recipe: Recipe, reference: Reference, rank: int) -> float:
    """LoRA alpha of a module of this rank; the run's alpha if the module has the run's rank."""
    return knob(recipe, reference, "alpha", rank).value


def derive(recipe: Recipe, reference: Reference, r: int) -> dict[str, Knob]:
    """Name -> every rank-dependent hyperparameter at rank `r`."""
    return {field.name: knob(recipe, reference, field.name, r) for field in fields(recipe.rules)}
