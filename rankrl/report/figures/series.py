"""Series that several figures draw: a dot for every run, and means with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankrl.report.figures.canvas import COLOURS, LINES, MARKERS, MAX_DOTS, n_text, shifts, thinned

Row = dict[str, Any]
Ends = tuple[float, float] | None
Point = Callable[[Row], tuple[float, Ends]]
"""A function from a row of statistics to one of its values and the interval of that value."""
GAIN = "gain over the base\n(fraction correct)"


def signal(row: Row) -> tuple[float, Ends]:
    """Mean gain of a row, with its 95 % interval clustered by seed."""
    return row["mean_gain"], row["blocked_ci95"]


def reliability(row: Row) -> tuple[float, Ends]:
    """Share of runs that are not negative, with its 95 % interval clustered by seed."""
    low, high = row["blocked_risk_ci95"]
    return 1 - row["negative_gain_risk"], (1 - high, 1 - low)


def lengths(points: list[tuple[float, Ends]]) -> list[list[float]]:
    """Lengths of the error bars: [below each point, above each point].

    Not below 0, as a rounding error could make them: matplotlib refuses that.
    """
    below = [max(value - ends[0], 0.0) if ends else 0.0 for value, ends in points]
    return [below, [max(ends[1] - value, 0.0) if ends else 0.0 for value, ends in points]]


def style(i: int) -> dict[str, Any]:
    """Colour, marker and line style of series `i`; the first 28 series all differ."""
    return {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "ls": LINES[i // 7 % 4], "lw": 1.6}


def lines(axes: Any, rows: list[Row], x: str, point: Point) -> None:
    """Draws a line for each arm: value and interval by `point`, against the column `x`."""
    arms = sorted({row["arm"] for row in rows})
    for i, (arm, shift) in enumerate(zip(arms, shifts(len(arms)), strict=True)):
        ours = [row for row in rows if row["arm"] == arm]
        points = [point(row) for row in ours]
        label = f"{arm}{': ' if arm else ''}mean, 95 % interval ({_runs(ours)} per {x.removesuffix('_size')})"
        at = [row[x] * shift for row in ours]
        axes.errorbar(
            at,
            [value for value, _ in points],
            yerr=lengths(points),
            label=label,
            ms=6,
            capsize=3.5,
            zorder=3,
            **style(i),
        )


def _runs(rows: list[Row]) -> str:
    """Sample size in words: `n = 6 runs`, or `n = 24 runs of 6 seeds` where seeds have several."""
    runs, seeds = [row["n_seeds"] for row in rows], [row["n_blocks"] for row in rows]
    return n_text(runs, "runs") + (f" of {n_text(seeds, 'seeds').removeprefix('n = ')}" if runs != seeds else "")


def dots(axes: Any, results: list[Row], x: str, value: Callable[[Row], float]) -> None:
    """Draws a dot for every run, left of the mean so that neither hides the other."""
    arms = sorted({run["arm"] for run in results})
    for i, (arm, shift) in enumerate(zip(arms, shifts(len(arms)), strict=True)):
        ours = [run for run in results if run["arm"] == arm]
        drawn = thinned(ours, MAX_DOTS // len(arms))
        name = f"{arm}: " if arm else ""
        axes.scatter(
            [run[x] * shift * 0.87 for run in drawn], [value(run) for run in drawn],
            s=20, alpha=0.7, color=COLOURS[i % 7], marker=MARKERS[i % 7], linewidths=0, zorder=2,
            label=f"{name}runs (n = {len(ours)})",
        )  # fmt: skip
