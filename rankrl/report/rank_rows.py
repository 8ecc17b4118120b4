"""The content of an allocation.json as rows by module type, layer or module, and its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankrl.recipe.cost import TRAIN_BYTES
from rankrl.recipe.rank_table import WEIGHT_BYTES, span
from rankrl.recipe.scale import Scale
from rankrl.recipe.spending import layer_and_type


def by_module(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("module", "rank", "alpha", "params")} for row in content["modules"]]


def grouped(content: dict[str, Any], name: str, key: Callable[[str], Any]) -> list[dict[str, Any]]:
    """One row of modules, ranks and parameters for each value of `key`.

    `key` maps the name of a module to its group; `name` is the column of that value.
    """
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in content["modules"]:
        groups.setdefault(key(row["module"]), []).append(row)
    return [{name: str(value), **_group(rows, content["spent"])} for value, rows in groups.items()]


def _group(rows: list[dict[str, Any]], spent: int) -> dict[str, Any]:
    ranks, params = [row["rank"] for row in rows], sum(row["params"] for row in rows)
    return {
        "modules": len(rows),
        "dropped": ranks.count(0),
        "lowest_rank": min(ranks),
        "mean_rank": sum(ranks) / len(ranks),
        "highest_rank": max(ranks),
        "params": params,
        "share": f"{params / spent:.1%}",
    }


def by_type(content: dict[str, Any]) -> list[dict[str, Any]]:
    return grouped(content, "type", lambda module: layer_and_type(module)[1])


def by_layer(content: dict[str, Any]) -> list[dict[str, Any]]:
    return grouped(content, "layer", lambda module: layer_and_type(module)[0])


def weight(content: dict[str, Any], scale: Scale) -> list[str]:
    """Lines of text: ranks, parameters, megabytes stored, sent to an engine, and in training."""
    spent, ranks = content["spent"], [row["rank"] for row in content["modules"]]
    return [
        f"{content['method']}: rank {span(content)}; {len(ranks) - ranks.count(0)} of {len(ranks)} modules adapted",
        f"{spent:,} of {content['budget']:,} parameters spent ({spent / content['budget']:.2%}); "
        f"{spent / scale.model.base_params:.4%} of the base",
        f"{spent * WEIGHT_BYTES / 1e6:.4g} MB stored, {spent * scale.model.bytes_per_param / 1e6:.4g} MB sent to an engine a step, "
        f"{spent * TRAIN_BYTES / 1e6:.4g} MB in training",
    ]
