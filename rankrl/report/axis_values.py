"""The values of a sweep's axes: read from records, and as they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from rankrl.recipe.axes import Point, short_key, value_slug, value_text
from rankrl.recipe.run_id import parse_run_id
from rankrl.report.resolved import section
from rankrl.report.visible import visible

Row = dict[str, Any]


def with_axes(rows: list[Row], resolved: dict[str, dict[str, str]]) -> list[Row]:
    """Rows of results with `axes`, the values of their arm; unchanged if the sweep has no axes.

    `resolved`: run id -> sections of its run.yaml. A run without a readable one has the values of
    another run of its arm.
    """
    points: dict[str, Point] = {}
    for row in rows:
        if found := _point(resolved.get(row["run_id"], {})):
            points.setdefault(row["arm"], found)
    return [row | {"axes": points.get(row["arm"], {})} for row in rows] if points else rows


def _point(sections: dict[str, str]) -> Point:
    """Dotted key -> value, from section `axes` of a run.yaml; {} without scalars."""
    tree = section("axes", sections.get("axes", "{}")).tree
    fine = isinstance(tree, dict) and all(isinstance(key, str) and _scalar(value) for key, value in tree.items())
    return tree if fine else {}


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and isfinite(value))


def listed_values(rows: list[Row], planned: Iterable[str]) -> dict[str, list[Any]]:
    """Dotted key of each axis -> its values, in the order of the plan: the first is the reference.

    `planned`: run ids of the plan. Values of arms that it lacks follow in ascending order of arms.
    """
    points = {row["arm"]: row.get("axes", {}) for row in rows}
    planned_arms = dict.fromkeys(place[0] for name in planned if (place := parse_run_id(name)))
    found: dict[str, dict[str, Any]] = {}
    for arm in [*planned_arms, *points]:
        for key, value in points.get(arm, {}).items():
            found.setdefault(key, {}).setdefault(value_slug(value), value)
    return {key: [*values.values()] for key, values in found.items()}


def axis_title(key: str) -> str:
    """The name of an axis as a reader sees it, such as lr."""
    return visible(short_key(key))


def shown_value(value: Any) -> str:
    """A value as a reader sees it."""
    return visible(value_text(value))


def spread_axes(row: Row) -> Row:
    """A row with a key `axes.KEY` for each value, a number or a text, in place of `axes`."""
    if "axes" not in row:
        return row
    values = {
        f"axes.{visible(key)}": value if type(value) in (int, float) else shown_value(value)
        for key, value in row["axes"].items()
    }
    at = list(row).index("axes")
    before, after = list(row.items())[:at], list(row.items())[at + 1 :]
    return {**dict(before), **values, **dict(after)}
