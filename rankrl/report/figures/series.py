"""Series that several figures draw: a dot for every run, means with intervals, runs without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from rankrl.report.figures.canvas import COLOURS, INK, LINES, MARKERS, MAX_DOTS, n_text, shifts, thinned

Row = dict[str, Any]
Ends = tuple[float, float] | None
Span = tuple[float, float]
"""Lowest and highest value that an axis has room for."""
Point = Callable[[Row], tuple[float, Ends]]
"""A function from a row of statistics to one of its values and the interval of that value."""
Value = Callable[[Row], float]
GAIN = "gain over the base\n(fraction correct)"
BOUNDS = (-1.0, 1.0)
"""A gain is a difference of two fractions."""
CUT = "interval goes on beyond the axis"
FATES = {("diverged", True): "X", ("diverged", False): "X", ("failed", False): "s"}
"""(status of a run that did not finish, whether it has a score) -> its marker."""
Names = dict[tuple[str, bool], str]
"""Text of the legend for each of the FATES that occur in a figure."""
BESIDE = 0.87
"""Factor on x that puts dots left of their mean."""


def signal(row: Row) -> tuple[float, Ends]:
    """Mean gain of a row, with its 95 % interval clustered by seed."""
    return row["mean_gain"], row["pooled_ci95"]


def reliability(row: Row) -> tuple[float, Ends]:
    """Share of runs that are not negative, with its 95 % interval clustered by seed."""
    low, high = row["blocked_risk_ci95"]
    return 1 - row["negative_gain_risk"], (1 - high, 1 - low)


def known(rows: list[Row], key: str = "mean_gain") -> list[Row]:
    """The rows that have a value of `key`: a cell without any score has no mean."""
    return [row for row in rows if row.get(key) is not None]


def scored(run: Row) -> bool:
    """Whether a run has a gain of its own: it did not fail, and it was evaluated at its end."""
    return run["status"] != "failed" and run["gain"] is not None


def gain(run: Row) -> float:
    """Gain of a run that is scored."""
    return run["gain"]


def window(values: Iterable[float], ends: Iterable[Ends], bounds: Span = BOUNDS) -> Span:
    """The span of an axis: the values, 0, and intervals as far as they do not dwarf the values.

    An interval may go beyond the values by as much as these span; few seeds can make it far wider.
    """
    values = [*values, 0.0]
    low, high = min(values), max(values)
    reach, tips = high - low or 0.05, [end for pair in ends if pair for end in pair]
    low, high = max(min([low, *tips]), low - reach), min(max([high, *tips]), high + reach)
    return max(low, bounds[0]), min(high, bounds[1])


def fit(axes: Any, span: Span, marked: bool = False) -> None:
    """Limits the y axis to `span` and some room; more below if there are `marked` runs."""
    room = 0.06 * (span[1] - span[0])
    axes.set_ylim(span[0] - (2.2 if marked else 1) * room, span[1] + room)


def lengths(points: list[tuple[float, Ends]]) -> list[list[float]]:
    """Lengths of the error bars: [below each point, above each point].

    Not below 0, as a rounding error could make them: matplotlib refuses that.
    """
    below = [max(value - ends[0], 0.0) if ends else 0.0 for value, ends in points]
    return [below, [max(ends[1] - value, 0.0) if ends else 0.0 for value, ends in points]]


def bars(
    axes: Any, at: list[float], points: list[tuple[float, Ends]], span: Span, flat: bool = False, **look: Any
) -> None:
    """Draws points with their intervals, cut at `span`; an arrowhead marks an end that was cut.

    `flat`: the values lie along x and `at` along y.
    """
    inside = [(value, ends and (max(ends[0], span[0]), min(ends[1], span[1]))) for value, ends in points]
    values = [value for value, _ in inside]
    x, y, error = (values, at, "xerr") if flat else (at, values, "yerr")
    _, caps, _ = axes.errorbar(x, y, **{error: lengths(inside)}, **look)
    for end, markers in ((0, "v<"), (1, "^>")):
        cut = [ends is not None and _beyond(ends[end], span[end], end) for _, ends in points]
        if any(cut):
            across = [place for place, is_cut in zip(at, cut, strict=True) if is_cut]
            edge = [span[end]] * len(across)
            tips = {"s": 34, "marker": markers[flat], "color": look["color"], "zorder": 4, "linewidths": 0}
            axes.scatter(*((edge, across) if flat else (across, edge)), label=CUT, **tips)
        if any(cut) and caps:  # an arrowhead in place of a cap
            caps[end].set_data(*(np.where(cut, np.nan, values) for values in caps[end].get_data()))


def _beyond(tip: float, edge: float, end: int) -> bool:
    return tip > edge + 1e-12 if end else tip < edge - 1e-12


def style(i: int) -> dict[str, Any]:
    """Colour, marker and line style of series `i`; the first 28 series all differ."""
    return {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "ls": LINES[i // 7 % 4], "lw": 1.6}


def lines(axes: Any, rows: list[Row], x: str, point: Point, span: Span, label: str = "") -> None:
    """Draws a line for each arm: value and interval by `point`, against the column `x`.

    The legend names arm and sample size, or says `label`.
    """
    arms = sorted({row["arm"] for row in rows})
    for i, (arm, shift) in enumerate(zip(arms, shifts(len(arms)), strict=True)):
        ours = [row for row in rows if row["arm"] == arm]
        named = f"{arm}{': ' if arm else ''}mean, 95 % interval ({_runs(ours)} per {x.removesuffix('_size')})"
        look = {"label": label or named, "ms": 6, "capsize": 3.5, "zorder": 3, **style(i)}
        bars(axes, [row[x] * shift for row in ours], [point(row) for row in ours], span, **look)


def _runs(rows: list[Row]) -> str:
    """Sample size in words: `n = 6 runs`, or `n = 24 runs of 6 seeds` where seeds have several."""
    runs, seeds = [row["n_seeds"] for row in rows], [row["n_blocks"] for row in rows]
    return n_text(runs, "runs") + (f" of {n_text(seeds, 'seeds').removeprefix('n = ')}" if runs != seeds else "")


def dots(axes: Any, runs: list[Row], x: str, value: Value, names: Names, label: str = "") -> None:
    """Draws a dot for every scored run, left of the mean so that neither hides the other.

    The others are marked at the lower edge. The legend names arm and number of runs, or says
    `label`.
    """
    arms = sorted({run["arm"] for run in runs})
    shift = dict(zip(arms, shifts(len(arms)), strict=True))
    for i, arm in enumerate(arms):
        ours = [run for run in runs if run["arm"] == arm and scored(run)]
        shown = thinned(ours, MAX_DOTS // len(arms))
        axes.scatter(
            [run[x] * shift[arm] * BESIDE for run in shown], [value(run) for run in shown],
            s=20, alpha=0.7, color=COLOURS[i % 7], marker=MARKERS[i % 7], linewidths=0, zorder=2,
            label=label or f"{arm}{': ' if arm else ''}runs (n = {len(ours)})",
        )  # fmt: skip
    mark(axes, runs, lambda run: run[x] * shift[run["arm"]] * BESIDE, value, names)


def fates(runs: list[Row]) -> Names:
    """Names, with the number of runs, of the FATES that occur among `runs`."""
    counts = Counter((run["status"], scored(run)) for run in runs)
    texts = {fate: f"{fate[0]}, {'with' if fate[1] else 'without'} a score (n = {counts[fate]})" for fate in FATES}
    return {fate: text for fate, text in texts.items() if counts[fate]}


def mark(axes: Any, runs: list[Row], place: Value, value: Value, names: Names) -> None:
    """Marks runs that did not finish: at their value, or at the lower edge if they have no score.

    `place`: run -> x. A number counts the runs at one place of the edge.
    """
    for i, (fate, name) in enumerate(names.items()):
        ours = [run for run in runs if (run["status"], scored(run)) == fate]
        face = "none" if fate[0] == "failed" else INK
        look = {"s": 30, "marker": FATES[fate], "facecolors": face, "edgecolors": INK, "linewidths": 0.9, "zorder": 5}
        if fate[1]:
            axes.scatter([place(run) for run in ours], [value(run) for run in ours], label=name, **look)
        else:
            _edge(axes, Counter(map(place, ours)), 0.03 + 0.05 * i, {"label": name, **look})


def _edge(axes: Any, counts: Counter[float], height: float, look: dict[str, Any]) -> None:
    """Draws a marker at each x of `counts`, and how many runs it stands for."""
    across = axes.get_xaxis_transform()
    axes.scatter([*counts], [height] * len(counts), transform=across, **look)
    axes.update_datalim([(x, 0.0) for x in counts], updatey=False)  # what is placed across is not counted
    beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
    for x, n in counts.items():
        if n > 1:
            axes.annotate(str(n), (x, height), xycoords=across, **beside)
