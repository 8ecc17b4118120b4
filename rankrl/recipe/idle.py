"""Settings without effect: of an allocation, a critic or an optimizer, and idle axes."""

from __future__ import annotations

from typing import Any

from rankrl.recipe.allocation import allocation_table, module_shapes
from rankrl.recipe.axes import given_arm, value_text
from rankrl.recipe.critic_section import Critic
from rankrl.recipe.history import plain, recorded
from rankrl.recipe.key import as_keys
from rankrl.recipe.optimizer_section import KNOBS
from rankrl.recipe.plan import Run
from rankrl.recipe.rules_section import Rules
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import Recipe

BESIDE = ("gae_lambda", "gae_length_alpha")
"""Settings of a critic outside of its section."""
IN_VALUES = ("value", "at_rank", "exponent", "c", "table")
"""Options of a rule that do nothing but give the value of its hyperparameter."""


def idle_settings(runs: list[Run]) -> list[str]:
    """The warnings of this file that are of sections."""
    return [
        *idle_allocations(runs),
        *idle_critics(runs),
        *idle_optimizers(runs),
        *idle_shapes(runs),
        *idle_histories(runs),
    ]


def idle_allocations(runs: list[Run]) -> list[str]:
    """A warning for each arm and rank whose allocation has no effect.

    Its method is not uniform, but it gives every module the same rank.
    """
    cells = {(run.arm, run.rank): run for run in runs if run.recipe.allocation.method != "uniform"}
    said = []
    for (arm, rank), run in cells.items():
        section, shapes = run.recipe.allocation, module_shapes(run.scale)
        if not section.measured:
            table = allocation_table(run.recipe, run.scale.reference, rank, shapes, run.seed)
            ranks = {row.rank for row in table}
            if len(ranks) == 1 and len(table) == len(shapes):
                name = f"arm {arm}, " if arm else ""
                said.append(
                    f"warning: {name}rank {rank}: allocation.method={section.method} has no effect at scale {run.scale.name}: "
                    f"every module gets rank {ranks.pop()}"
                )
    return said


def evaluated_apart(scale: Scale) -> list[str]:
    """A note if evaluations are at another temperature than training."""
    sampling = scale.sampling
    if sampling.eval_temperature == sampling.temperature:
        return []
    return [
        f"note: evaluations are at temperature {sampling.eval_temperature:g}, training is at {sampling.temperature:g}: the gain is "
        "that of another policy than the trained one"
    ]


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
        method = recipe.optimizer.method
        found = {f"optimizer.{key}": f"optimizer.method={method}" for key in recipe.optimizer.idle}
        unused = {*recipe.optimizer.by_knob} - {*KNOBS[method]}
        found |= {f"rules.{name}": f"optimizer.method={method}" for name in recipe.rules.given if name in unused}
        if recipe.trained == "b" and recipe.rules.lr_ratio != Rules().lr_ratio:
            found["rules.lr_ratio"] = "trained=b: A has no rate, and B has rules.lr"
        name = f"arm {arm}: " if arm else ""
        said += [f"warning: {name}{key} without effect: {why}" for key, why in found.items()]
    return said


def idle_shapes(runs: list[Run]) -> list[str]:
    """A warning for each arm whose trust region undoes the decay of its rate."""
    arms = {run.arm: run.recipe for run in runs}
    undone = {arm: recipe for arm, recipe in arms.items() if recipe.trust_region.on and recipe.lr_shape != "constant"}
    why = "trust_region.target says how large steps are, and raises a rate that decays; lr_shape=constant"
    return [
        f"warning: {f'arm {arm}: ' if arm else ''}lr_shape={recipe.lr_shape} hardly acts: {why}"
        for arm, recipe in undone.items()
    ]


def idle_histories(runs: list[Run]) -> list[str]:
    """A warning for each arm whose baseline has a history that no prompt ever gets."""
    arms = {run.arm: run for run in runs if run.recipe.advantage.method == "history"}
    once = {arm: run for arm, run in arms.items() if run.prompts * run.recipe.steps <= run.scale.data.train_items}
    why = "no prompt is seen twice, so a baseline knows its group and the other prompts alone"
    return [
        f"warning: {f'arm {arm}: ' if arm else ''}advantage.method=history has no history: {run.recipe.steps} steps of "
        f"{run.prompts} prompts, {run.scale.data.train_items:,} train items; {why}"
        for arm, run in once.items()
    ]


def _critic_settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of the settings of the critic that are not the default."""
    default = as_keys(Critic)
    given = {f"critic.{key}": value for key, value in as_keys(recipe.critic).items() if value != default[key]}
    return given | {key: getattr(recipe, key) for key in BESIDE if getattr(recipe, key) != getattr(Recipe, key)}


def idle_axes(runs: list[Run]) -> list[str]:
    """A warning for each rank at which values of an axis give the same runs.

    Such are exponents of a rule at its reference rank.
    """
    cells = {(run.arm, run.rank): run for run in runs if run.axes}
    settings = {arm: _settings(run.recipe) for (arm, _), run in cells.items()}
    alike: dict[tuple[int, str, str], list[str]] = {}
    for run in cells.values():
        does = [(knob.rule, knob.value) for knob in run.knobs.values()], settings[run.arm]
        for key, value in run.axes.items():
            elsewhere = given_arm(run.arm, run.axes), {**run.axes, key: None}
            alike.setdefault((run.rank, key, repr((elsewhere, does))), []).append(value_text(value))
    found = [(rank, key, ", ".join(values)) for (rank, key, _), values in alike.items() if len(values) > 1]
    why = "give the same runs"
    return [f"warning: rank {rank}: {key} has no effect: {values} {why}" for rank, key, values in dict.fromkeys(found)]


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What a run does besides its derived hyperparameters, as plain values."""
    found = recorded("recipe", recipe)
    if not recipe.advantage.critic:
        found = {key: value for key, value in found.items() if key not in (*BESIDE, "critic")}
    in_values = IN_VALUES if recipe.allocation.method == "uniform" else ()  # mixed ranks have alphas of their own
    rules = {
        name: {key: value for key, value in rule.items() if key not in in_values}
        for name, rule in plain(recipe.rules.given).items()
    }
    return {**found, "steps": recipe.steps, "rules": rules}
