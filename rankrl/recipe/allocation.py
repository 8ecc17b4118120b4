"""From a recipe and the shapes of modules to the rank of each module. No torch.

The budget of a run is a number of adapter parameters; the recipe's allocation says how the modules
share it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from rankrl.recipe import spending
from rankrl.recipe.allocation_section import Allocation
from rankrl.recipe.knobs import alpha_at
from rankrl.recipe.rank_table import LARGEST_SERVED, ModuleRank, Shapes, document, params, rows, trained_params, uniform
from rankrl.recipe.require import require
from rankrl.recipe.scale import Reference, Scale
from rankrl.recipe.schema import Recipe
from rankrl.recipe.spending import Space
from rankrl.recipe.whole_file import whole_file

Importance = dict[str, list[float]]
"""Module name -> values of its directions, largest first. No value is negative."""


def module_shapes(scale: Scale) -> Shapes:
    """Name -> (d_in, d_out) of the adapted modules, named as in the decoders of transformers.

    For planning; training reads the shapes from the real model.
    """
    return {
        f"model.layers.{layer}.{'mlp' if kind in spending.MLP else 'self_attn'}.{kind}": (d_in, d_out)
        for layer in range(scale.model.layers)
        for kind, (d_in, d_out) in scale.model.modules.items()
    }


def budget(section: Allocation, rank: int, shapes: Shapes) -> int:
    """The largest number of adapter parameters that a run of this rank may have."""
    if section.budget_params is not None:
        return section.budget_params
    return int((section.budget_rank or rank) * sum(d_in + d_out for d_in, d_out in shapes.values()))


def largest_rank(section: Allocation, rank: int, shapes: Shapes) -> int:
    """The largest rank that a module may get.

    So many directions are measured per module, and engines reserve memory for it. Raises
    ValueError if `max_rank` is too small for the budget.
    """
    if section.method == "uniform":
        return rank
    level = budget(section, rank, shapes) / sum(d_in + d_out for d_in, d_out in shapes.values())
    most = section.max_rank or (max(8, 8 * ceil(level)) if section.measured else LARGEST_SERVED)
    require(most >= level, "allocation.max_rank", most, f"at least the budget's uniform rank, {level:.4g}")
    return min(most, LARGEST_SERVED, max(min(shape) for shape in shapes.values()))


def allocation_table(
    recipe: Recipe, reference: Reference, rank: int, shapes: Shapes, seed: int, importance: Importance | None = None
) -> list[ModuleRank]:
    """Rank and alpha of each module: rank by the recipe's method, alpha by its rule at that rank.

    Training uses this alpha. It equals the run's derived alpha in every module of the run's rank.
    Raises ValueError, in one line, if the budget is too small, a measurement is missing or lacks a
    module, or the rule of alpha has no value for a rank.
    """
    section, alpha = recipe.allocation, partial(alpha_at, recipe, reference)
    if section.method == "uniform":
        return uniform(shapes, rank, alpha)
    most = largest_rank(section, rank, shapes)
    where = spending.space(shapes, budget(section, rank, shapes), section.min_rank, most)
    densities = _densities(section, shapes, where, importance)
    if section.control == "random":
        densities = spending.permuted(densities, seed)
    if section.control == "reversed":
        densities = spending.mirrored(densities)
    if section.method == "greedy":
        ranks = spending.greedy(densities, where)
    else:
        ranks = spending.proportional({name: sum(values) for name, values in densities.items()}, where)
    return rows(shapes, spending.shrunk(ranks, section.tau, where), alpha)


def allocation_document(section: Allocation, rank: int, shapes: Shapes, table: list[ModuleRank]) -> dict[str, Any]:
    """The content of allocation.json for a run of this rank."""
    return document(table, shapes, section.label, budget(section, rank, shapes))


def _densities(section: Allocation, shapes: Shapes, where: Space, importance: Importance | None) -> Importance:
    """Module name -> value per parameter of each direction.

    A profile has one value per module, and the rank is proportional to it.
    """
    if not section.measured:
        return {name: [weight] for name, weight in profile(section, shapes).items()}
    require(importance is not None, "allocation.method", section.method, "this method with a measured importance")
    assert importance is not None
    check_importance(importance, shapes)
    return {name: [value / cost for value in importance[name]] for name, cost in where.costs.items()}


def profile(section: Allocation, shapes: Shapes) -> dict[str, float]:
    """Module name -> weight in the recipe's profile; the rank is proportional to it.

    Raises ValueError if the profile does not fit the modules.
    """
    places = {name: spending.layer_and_type(name) for name in shapes}
    layers, kinds = 1 + max(layer for layer, _ in places.values()), {kind for _, kind in places.values()}
    if section.profile == "mlp":
        require(bool(kinds & {*spending.MLP}), "allocation.profile", "mlp", "a scale with mlp modules", str(kinds))
    if section.profile == "table":
        stated = sorted(section.table or {})
        require(set(stated) == kinds, "allocation.table", stated, f"a weight for each of {', '.join(sorted(kinds))}")
    if section.profile == "last_k":
        fine = section.last_k is not None and section.last_k < layers
        require(fine, "allocation.last_k", section.last_k, f"1 to {layers - 1}, fewer than the layers")
    return {
        name: _weight(section, (layer + 1) / (layers + 1), layers - layer, kind)
        for name, (layer, kind) in places.items()
    }


def _weight(section: Allocation, depth: float, from_last: int, kind: str) -> float:
    if section.profile == "linear":
        return spending.linear(depth, section.slope or 0)
    if section.profile == "triangular":
        return spending.triangular(depth, section.peak or 0)
    if section.profile == "last_k":
        return float(from_last <= (section.last_k or 0))
    return float(kind in spending.MLP) if section.profile == "mlp" else (section.table or {})[kind]


def planned(recipe: Recipe, scale: Scale, rank: int, seed: int) -> tuple[int, int, int]:
    """(trained parameters, largest rank of a module, frozen parameters) of a run's policy adapter.

    They are exact, or upper bounds if the allocation needs a measurement. Raises ValueError, before
    anything is started, if the budget cannot be allocated.
    """
    section, shapes = recipe.allocation, module_shapes(scale)
    if not section.measured:
        allocated = allocation_table(recipe, scale.reference, rank, shapes, seed)
        trained = trained_params(allocated, recipe.trained)
        return trained, max(row.rank for row in allocated), params(allocated) - trained
    most = largest_rank(section, rank, shapes)
    where = spending.space(shapes, budget(section, rank, shapes), section.min_rank, most)
    for possible in range(max(section.min_rank, 1), most + 1):
        alpha_at(recipe, scale.reference, possible)  # a table must list every rank that a measurement may give
    whole = int(min(where.budget, where.spent(where.most)))
    if recipe.trained == "both":
        return whole, most, 0
    d_in, d_out = (max(shape[side] / sum(shape) for shape in shapes.values()) for side in (0, 1))
    return int(whole * d_out), most, int(whole * d_in)


def check_importance(importance: Importance, shapes: Shapes) -> None:
    """Checks the measured values of every module.

    Raises ValueError, in one line that names the module, if they are missing, negative, not finite
    or not sorted from the largest.
    """
    for name in shapes:
        values = importance.get(name)
        require(values is not None, "importance", sorted(importance)[:1], f"values for every adapted module: {name}")
        assert values is not None
        fine = all(isfinite(v) and v >= 0 for v in values) and values == sorted(values, reverse=True)
        require(fine, f"importance of {name}", values[:4], "values that are not negative and do not increase")


def write_importance(path: Path, value: str, importance: Importance) -> None:
    """Writes importance.json; `value` is what was measured: signal, activation or fisher."""
    with whole_file(path) as part:
        part.write_text(json.dumps({"value": value, "modules": importance}, indent=1) + "\n")


def read_importance(path: Path, wanted: Collection[str]) -> tuple[str, Importance]:
    """(what was measured, values of each module) of an importance.json.

    Raises ValueError if it cannot be read or what was measured is not in `wanted`.
    """
    try:
        content = json.loads(path.read_text())
        kind, modules = content["value"], {name: [*map(float, v)] for name, v in content["modules"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--importance: got {str(path)!r}, allowed: an importance.json ({error!r})") from error
    says = (
        f"what allocation.value says: {', '.join(sorted(wanted))}"
        if wanted
        else "nothing: no allocation here is measured"
    )
    require(kind in wanted, "--importance", f"{path} of {kind}", says)
    return kind, modules
