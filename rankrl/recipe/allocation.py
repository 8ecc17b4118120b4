"""Recipe x shapes -> the table of ranks: what a run's budget is, and how its allocation spends it. No torch."""

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
from rankrl.recipe.rank_table import LARGEST_SERVED, ModuleRank, Shapes, document, rows, uniform
from rankrl.recipe.require import require
from rankrl.recipe.scale import Reference, Scale
from rankrl.recipe.schema import Recipe
from rankrl.recipe.spending import Space
from rankrl.recipe.whole_file import whole_file

Importance = dict[str, list[float]]
"""Module name -> value of its 1st, 2nd, ... direction: not negative, not increasing."""


def module_shapes(scale: Scale) -> Shapes:
    """The adapted modules, named as in transformers' decoders. Training asks the real model."""
    return {
        f"model.layers.{layer}.{'mlp' if kind in spending.MLP else 'self_attn'}.{kind}": (d_in, d_out)
        for layer in range(scale.model.layers)
        for kind, (d_in, d_out) in scale.model.modules.items()
    }


def budget(section: Allocation, rank: int, shapes: Shapes) -> int:
    """Parameters to spend at most."""
    if section.budget_params is not None:
        return section.budget_params
    return int((section.budget_rank or rank) * sum(d_in + d_out for d_in, d_out in shapes.values()))


def largest_rank(section: Allocation, rank: int, shapes: Shapes) -> int:
    """The largest rank that a module may get: what is measured per module, and what engines make room for."""
    if section.method == "uniform":
        return rank
    level = budget(section, rank, shapes) / sum(d_in + d_out for d_in, d_out in shapes.values())
    most = section.max_rank or (max(8, 8 * ceil(level)) if section.measured else LARGEST_SERVED)
    require(most >= level, "allocation.max_rank", most, f"at least the budget's uniform rank, {level:.4g}")
    return min(most, LARGEST_SERVED, max(min(shape) for shape in shapes.values()))


def allocation_table(
    recipe: Recipe, reference: Reference, rank: int, shapes: Shapes, seed: int, importance: Importance | None = None
) -> list[ModuleRank]:
    """The allocation of a run: ranks by the recipe's method, alpha of each module by the rule of alpha at its own rank.

    This alpha has the last word; it is the run's knob wherever a module has the run's rank.
    Raises ValueError, one line, for too small a budget, no measurement or one of other modules, an alpha without such a rank.
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
    """The content of allocation.json."""
    return document(table, shapes, section.label, budget(section, rank, shapes))


def _densities(section: Allocation, shapes: Shapes, where: Space, importance: Importance | None) -> Importance:
    """Value per parameter of each module's directions. A profile has one value per module, to which the rank is proportional."""
    if not section.measured:
        return {name: [weight] for name, weight in profile(section, shapes).items()}
    require(importance is not None, "allocation.method", section.method, "this method with a measured importance")
    assert importance is not None
    check_importance(importance, shapes)
    return {name: [value / cost for value in importance[name]] for name, cost in where.costs.items()}


def profile(section: Allocation, shapes: Shapes) -> dict[str, float]:
    """Weight of each module, to which its rank is proportional."""
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


def planned(recipe: Recipe, scale: Scale, rank: int, seed: int) -> tuple[int, int]:
    """(parameters, largest rank of a module) of a run: exact, or upper bounds where the allocation waits for a measurement.

    Raises ValueError for what cannot be allocated, before anything is started.
    """
    section, shapes = recipe.allocation, module_shapes(scale)
    if not section.measured:
        allocated = allocation_table(recipe, scale.reference, rank, shapes, seed)
        return sum(row.params for row in allocated), max(row.rank for row in allocated)
    most = largest_rank(section, rank, shapes)
    where = spending.space(shapes, budget(section, rank, shapes), section.min_rank, most)
    for possible in range(max(section.min_rank, 1), most + 1):
        alpha_at(recipe, scale.reference, possible)  # a table must list every rank that a measurement may give
    return int(min(where.budget, where.spent(where.most))), most


def check_importance(importance: Importance, shapes: Shapes) -> None:
    """Raises ValueError, one line, naming the module."""
    for name in shapes:
        values = importance.get(name)
        require(values is not None, "importance", sorted(importance)[:1], f"values for every adapted module: {name}")
        assert values is not None
        fine = all(isfinite(v) and v >= 0 for v in values) and values == sorted(values, reverse=True)
        require(fine, f"importance of {name}", values[:4], "values that are not negative and do not increase")


def write_importance(path: Path, value: str, importance: Importance) -> None:
    """importance.json: what was measured (signal, activation, fisher) and the values of each module."""
    with whole_file(path) as part:
        part.write_text(json.dumps({"value": value, "modules": importance}, indent=1) + "\n")


def read_importance(path: Path, wanted: Collection[str]) -> tuple[str, Importance]:
    """What an importance.json measured, and the values. Raises ValueError if that is not `wanted`, or it cannot be read."""
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
