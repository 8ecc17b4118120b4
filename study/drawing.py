"""What the study's figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runs import Estimate

from rankrl.report.figures.canvas import COLOURS, MARKERS


def intervals(panel: Any, found: Sequence[Estimate], places: Sequence[float], i: int, **look: Any) -> None:
    """Means with their intervals to both sides, at heights `places`, in the `i`-th colour."""
    panel.errorbar([one.mean for one in found], places, xerr=_ends(found), **_style(i), **look)


def upright_intervals(panel: Any, found: Sequence[Estimate], places: Sequence[float], i: int, **look: Any) -> None:
    """Means with their intervals up and down, at places along the axis, in the `i`-th colour."""
    panel.errorbar(places, [one.mean for one in found], yerr=_ends(found), **_style(i), **look)


def _ends(found: Sequence[Estimate]) -> list[list[float]]:
    return [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]


def _style(i: int) -> dict[str, Any]:
    return {"marker": MARKERS[i], "color": COLOURS[i], "ms": 4, "lw": 1, "elinewidth": 1}
