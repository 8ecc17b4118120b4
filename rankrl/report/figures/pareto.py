"""Figure of gain against training tokens: every cell, and the Pareto front."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from rankrl.report.figures.canvas import (
    COLOURS,
    INK,
    MARKERS,
    Canvas,
    legend_right,
    n_text,
    panels,
    rank_colours,
    zero_line,
)
from rankrl.report.figures.labels import name_point
from rankrl.report.figures.series import GAIN, Row, fit, known, window

NARROWEST = 1.25
"""Smallest ratio of the ends of the token axis: smaller differences are noise, not a cost."""
LOWER = "risk-averse: lower end of the 95 % interval"
Kinds = list[tuple[str, int]]
"""Pairs (arm, batch size), each with a marker."""


def pareto(points: list[Row], cells: list[Row]) -> Canvas | None:
    """Figure: gain against training tokens, one dot per cell, with the Pareto front.

    Left by mean gain, right by the lower end of its 95 % interval; what lies below the axis is
    marked at its edge. None with fewer than two cells.
    """
    points = [row for row in known(points) if row["mean_tokens"]]
    if len(points) < 2:
        return None
    careful = known(points, "lower_gain")
    sides = [(points, "mean_gain", "on_front", "mean gain")]
    sides += [(careful, "lower_gain", "on_front_risk_averse", LOWER)] if careful else []
    canvas, grid = panels(len(sides), 4.6, 3.8, sharex=True, sharey=True)
    span = window([row["mean_gain"] for row in points], [(row["lower_gain"], row["mean_gain"]) for row in careful])
    colours = rank_colours(row["rank"] for row in points)
    kinds = list(dict.fromkeys((row["arm"], row["batch_size"]) for row in points))
    kinds = kinds if len(kinds) <= len(MARKERS) else []  # no markers for more; cells on the front are named
    for axes, (rows, value, front, title) in zip(grid.flat, sides, strict=True):
        inside = [row for row in rows if row[value] >= span[0]]
        _points(axes, inside, value, colours, kinds)
        _below(axes, [row for row in rows if row[value] < span[0]], span[0], colours)
        _front(axes, [row for row in inside if row[front]], value)
        zero_line(axes)
        fit(axes, span)
        axes.set_title(title)
        _token_axis(axes, [row["mean_tokens"] / 1e6 for row in points])
    grid[0][0].set_ylabel(GAIN)
    below = any(row["lower_gain"] < span[0] for row in careful)
    _legend(canvas, colours, kinds, below, n_text((row["n_seeds"] for row in cells), "runs per cell"))
    return canvas


def _token_axis(axes: Any, millions: list[float]) -> None:
    """A logarithmic axis that is not narrower than NARROWEST, with few ticks at round values."""
    low, high = min(millions), max(millions)
    wider = max(NARROWEST / (high / low), 1.0) ** 0.5
    room = (high / low) ** 0.12
    low, high = low / wider / room, high * wider * room
    axes.set_xscale("log")
    ticks = round_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    axes.set_xlabel("training tokens per run (million)")


def round_ticks(low: float, high: float) -> list[float]:
    """At least three round values in a range of a logarithmic axis."""
    exponents = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        ticks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
        if len(inside := [tick for tick in ticks if low <= tick <= high]) >= 3:
            return inside
    return [float(f"{tick:.6g}") for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _points(axes: Any, rows: list[Row], value: str, colours: dict[int, str], kinds: Kinds) -> None:
    for i, kind in enumerate(kinds or [None]):
        ours = [row for row in rows if kind in (None, (row["arm"], row["batch_size"]))]
        axes.scatter(
            [row["mean_tokens"] / 1e6 for row in ours], [row[value] for row in ours], s=38, zorder=3,
            c=[colours[row["rank"]] for row in ours], marker=MARKERS[i % 7], edgecolors=INK, linewidths=0.6,
        )  # fmt: skip


def _below(axes: Any, rows: list[Row], edge: float, colours: dict[int, str]) -> None:
    """Marks cells whose value lies below the axis, at its lower edge."""
    x, c = [row["mean_tokens"] / 1e6 for row in rows], [colours[row["rank"]] for row in rows]
    if rows:
        axes.scatter(x, [edge] * len(rows), s=38, marker=7, c=c, linewidths=0, zorder=3)  # 7: a caret down


def _front(axes: Any, rows: list[Row], value: str) -> None:
    """Draws the front as steps, the best value at each cost, and names its cells."""
    rows = sorted(rows, key=lambda row: row["mean_tokens"])
    x, y = [row["mean_tokens"] / 1e6 for row in rows], [row[value] for row in rows]
    axes.step(x, y, where="post", color=COLOURS[1], lw=1.6)
    for row in sorted(rows, key=lambda row: -row[value]):
        name = f"{row['arm']} r{row['rank']} b{row['batch_size']}".strip()
        name_point(axes, name, (row["mean_tokens"] / 1e6, row[value]))


def _legend(canvas: Canvas, colours: dict[int, str], kinds: Kinds, below: bool, n: str) -> None:
    handles = [dot(f"rank {rank}", colour, "o") for rank, colour in colours.items()]
    for i, (arm, size) in enumerate(kinds):
        handles.append(dot(f"{arm}{', ' if arm else ''}batch {size}", "none", MARKERS[i]))
    handles.append(Line2D([], [], color=COLOURS[1], lw=1.6, label="front"))
    if below:
        handles.append(Line2D([], [], ls="", marker=7, color=INK, label="below the axis"))
    legend_right(canvas, handles, n)


def dot(label: str, colour: str, marker: str) -> Line2D:
    """A dot in a legend."""
    return Line2D([], [], ls="", marker=marker, color=colour, markeredgecolor=INK, markeredgewidth=0.6, label=label)
