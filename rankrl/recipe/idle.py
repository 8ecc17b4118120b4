"""Settings that have no effect: of a critic or an optimizer that an arm does not have."""

from __future__ import annotations

from typing import Any

from rankrl.recipe.key import as_keys
from rankrl.recipe.plan import Run
from rankrl.recipe.rules_section import Rules
from rankrl.recipe.schema import Critic, Recipe


def idle_settings(runs: list[Run]) -> list[str]:
    """The warnings of this file."""
    return [*idle_critics(runs), *idle_optimizers(runs)]


def idle_critics(runs: list[Run]) -> list[str]:
    """A warning for each arm without a critic that has settings of one.

    Settings that it shares with an arm that has a critic act there.
    """
    arms = {run.arm: run.recipe for run in runs}
    acting = [_critic_settings(recipe) for recipe in arms.values() if recipe.advantage.critic]
    said = []
    for arm, recipe in arms.items():
        found = _critic_settings(recipe)
        if found and found not in acting and not recipe.advantage.critic:
            name = f"arm {arm}: " if arm else ""
            why = f"advantage.method={recipe.advantage.method} has no critic"
            said.append(f"warning: {name}{', '.join(found)} without effect: {why}")
    return said


def idle_optimizers(runs: list[Run]) -> list[str]:
    """A warning for each arm with settings of an optimizer that act on nothing there."""
    said = []
    for arm, recipe in {run.arm: run.recipe for run in runs}.items():
        found = {f"optimizer.{key}": f"optimizer.method={recipe.optimizer.method}" for key in recipe.optimizer.idle}
        if recipe.trained == "b" and recipe.rules.lr_ratio != Rules().lr_ratio:
            found["rules.lr_ratio"] = "trained=b: A has no rate, and B has rules.lr"
        name = f"arm {arm}: " if arm else ""
        said += [f"warning: {name}{key} without effect: {why}" for key, why in found.items()]
    return said


def _critic_settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of the settings of the critic that are not the default."""
    default, beside = as_keys(Critic), ("gae_lambda", "gae_length_alpha")
    given = {f"critic.{key}": value for key, value in as_keys(recipe.critic).items() if value != default[key]}
    return given | {key: getattr(recipe, key) for key in beside if getattr(recipe, key) != getattr(Recipe, key)}
