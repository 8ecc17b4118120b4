"""Settings of a critic that have no effect, because an arm has none."""

from __future__ import annotations

from typing import Any

from rankrl.recipe.key import as_keys
from rankrl.recipe.plan import Run
from rankrl.recipe.schema import Critic, Recipe


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


def _critic_settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of the settings of the critic that are not the default."""
    default, beside = as_keys(Critic), ("gae_lambda", "gae_length_alpha")
    given = {f"critic.{key}": value for key, value in as_keys(recipe.critic).items() if value != default[key]}
    return given | {key: getattr(recipe, key) for key in beside if getattr(recipe, key) != getattr(Recipe, key)}
