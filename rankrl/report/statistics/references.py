"""With which arms an arm is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rankrl.recipe.axes import given_arm, value_slug
from rankrl.report.statistics.cells import Result

Values = dict[str, list[Any]]
"""Dotted key of an axis -> its values, the reference first."""
ARM = "arm"
"""What arms that the recipe names differ in. Points differ in the key of an axis."""


def reference_arm(arms: list[str]) -> str | None:
    """The arm to compare others with: `off`, else the first by name; None with fewer than two."""
    if len(arms) < 2:
        return None
    return "off" if "off" in arms else min(arms)


def one_reference(arms: Iterable[str]) -> dict[str, dict[str, str]]:
    """What `references` returns where all arms are compared with one."""
    against = reference_arm(sorted(arms))
    return {arm: {ARM: against} for arm in arms if against is not None and arm != against}


def references(results: list[Result], values: Values) -> dict[str, dict[str, str]]:
    """Arm -> what it differs in -> the arm that it is compared with.

    Without axes all arms are compared with one. A point of axes is compared with those that differ
    from it on one axis alone, and have the first value there.
    """
    if not values:
        return one_reference({run["arm"] for run in results})
    points = {run["arm"]: place(run) for run in results if run["axes"].keys() == values.keys()}
    at = {tuple(where.items()): arm for arm, where in points.items()}
    given = reference_arm(sorted({where[ARM] for where in points.values()}))
    first = {ARM: given or ""} | {key: value_slug(known[0]) for key, known in values.items()}
    found: dict[str, dict[str, str]] = {}
    for arm, where in points.items():
        beside = {key: at.get(tuple((where | {key: first[key]}).items())) for key in where}
        found[arm] = {key: other for key, other in beside.items() if other and other != arm}
    return found


def place(run: Result) -> dict[str, str]:
    """What arms differ in -> its value at a run, as a text."""
    axes = {key: value_slug(value) for key, value in sorted(run["axes"].items())}
    return {ARM: given_arm(run["arm"], run["axes"])} | axes
