"""Figures of cells (rank x batch size): heat maps, distributions over seeds, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np

from rankrl.report.figures.canvas import (
    COLOURS,
    INK,
    MARKERS,
    MAX_DOTS,
    Canvas,
    n_text,
    outer,
    panels,
    rank_colours,
    thinned,
    zero_line,
)  # fmt: skip
from rankrl.report.figures.series import GAIN, Row
from rankrl.report.statistics.cells import outcome_gain

MOST_MAPS = 6


def heat_maps(cells: list[Row]) -> Canvas | None:
    """Figure: heat maps of mean gain and negative-gain risk over rank x batch size, a row per arm.

    None with fewer than two ranks or batch sizes, or with more than MOST_MAPS arms.
    """
    arms = sorted({row["arm"] for row in cells})
    ranks, sizes = ([*sorted({row[key] for row in cells})] for key in ("rank", "batch_size"))
    if len(ranks) < 2 or len(sizes) < 2 or len(arms) > MOST_MAPS:
        return None
    canvas, grid = panels(
        2 * len(arms), max(0.46 * len(ranks) + 0.6, 3.4), 0.38 * len(sizes) + 0.8, columns=2, sharex=True, sharey=True
    )
    gains = np.array([row["mean_gain"] for row in cells])
    span = float(gains.min()), float(gains.max())
    for (left, right), arm in zip(grid, arms, strict=True):
        ours = [row for row in cells if row["arm"] == arm]
        name = f"{arm}: " if arm else ""
        n = n_text((row["n_seeds"] for row in ours), "runs per cell")
        left.set_title(f"{name}mean gain ({n})")
        right.set_title(f"{name}runs with gain < 0 ({n})")
        _map(left, ours, ranks, sizes, lambda row: (row["mean_gain"], f"{row['mean_gain']:+.3f}"), "cividis", span)
        _map(right, ours, ranks, sizes, _risk, "magma_r", (0.0, 1.0))
        left.set_ylabel("batch size (prompts)")
    for axes in grid[-1]:
        axes.set_xlabel("LoRA rank")
    return canvas


def _risk(row: Row) -> tuple[float, str]:
    return row["negative_gain_risk"], f"{row['negative_runs']}/{row['n_seeds']}"


def _map(
    axes: Any,
    cells: list[Row],
    ranks: list[int],
    sizes: list[int],
    read: Callable[[Row], tuple[float, str]],
    colours: str,
    span: tuple[float, float],
) -> None:
    """Draws one heat map; a cell without runs stays empty.

    `read`: row -> (value, text in the cell). `span`: lowest and highest value of the colours.
    """
    values = np.full((len(sizes), len(ranks)), np.nan)
    for row in cells:
        values[sizes.index(row["batch_size"]), ranks.index(row["rank"])] = read(row)[0]
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=span[0], vmax=span[1])
    for row in cells:
        value, text = read(row)
        ink = readable(mesh.cmap(mesh.norm(value)))
        place = ranks.index(row["rank"]) + 0.5, sizes.index(row["batch_size"]) + 0.5
        axes.text(*place, text, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(np.arange(len(ranks)) + 0.5, [str(rank) for rank in ranks])
    axes.set_yticks(np.arange(len(sizes)) + 0.5, [str(size) for size in sizes])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def readable(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever has more contrast on the colour `rgba` (luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return "#000000" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.18 else "#ffffff"


def distributions(results: list[Row]) -> Canvas | None:
    """Figure: gain of every run by rank, with quartiles and median.

    One panel per arm and batch size; per arm if these would be more than twelve. None with fewer
    than two runs per panel on average.
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for run in results:
        groups.setdefault((run["arm"], run["batch_size"]), []).append(run)
    if len(groups) > 12:
        groups = {
            (arm, 0): [run for run in results if run["arm"] == arm] for arm in sorted({run["arm"] for run in results})
        }
    ranks = sorted({run["rank"] for run in results})
    if len(results) < 2 * len(groups):
        return None
    canvas, grid = panels(
        len(groups),
        max(0.34 * len(ranks) + 1, 2.6 if len(groups) > 1 else 5.0),
        2.3,
        columns=2 if len(groups) in (2, 4) else 3,
        sharex=True,
        sharey=True,
    )
    for axes, ((arm, size), runs) in zip(grid.flat, sorted(groups.items()), strict=False):
        cells = [sorted(outcome_gain(run) for run in runs if run["rank"] == rank) for rank in ranks]
        n = n_text((len(cell) for cell in cells if cell), "per rank")
        axes.set_title(", ".join([*[arm] * bool(arm), *[f"batch {size}"] * bool(size)]) + f"\n{n}", fontsize=9)
        _distributions(axes, cells, max(MAX_DOTS // (len(groups) * len(ranks)), 3))
        zero_line(axes)
        axes.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    outer(grid, len(groups), "LoRA rank", GAIN)
    return canvas


def _distributions(axes: Any, cells: list[list[float]], most: int) -> None:
    """Draws quartiles, median and at most `most` dots of each cell; `cells` hold sorted gains."""
    filled = [(x, cell) for x, cell in enumerate(cells) if cell]
    x = np.array([x for x, _ in filled])
    low, middle, high = np.array([np.quantile(cell, (0.25, 0.5, 0.75)) for _, cell in filled]).T
    axes.vlines(x, low, high, color=COLOURS[0], alpha=0.3, lw=9)
    axes.hlines(middle, x - 0.3, x + 0.3, color=COLOURS[0], lw=2)
    # 2.4 rad is the golden angle, which spreads the dots sideways without a pattern
    dots = [(at + 0.22 * np.sin(2.4 * i), gain) for at, cell in filled for i, gain in enumerate(thinned(cell, most))]
    axes.scatter(*np.transpose(dots), s=12, color=COLOURS[1], alpha=0.7, linewidths=0, zorder=3)


def pareto(points: list[Row], cells: list[Row]) -> Canvas | None:
    """Figure: gain against training tokens, one dot per cell, with the Pareto front.

    Left by mean gain, right by the lower end of its 95 % interval. None with fewer than two cells.
    """
    points = [row for row in points if row["mean_tokens"]]
    if len(points) < 2:
        return None
    careful = [row for row in points if row["lower_gain"] is not None]
    sides = [(points, "mean_gain", "on_front", "mean gain")]
    if careful:
        sides.append((careful, "lower_gain", "on_front_risk_averse", "risk-averse: lower end of the 95 % interval"))
    canvas, grid = panels(len(sides), 4.6, 3.8, sharex=True, sharey=True)
    colours = rank_colours(row["rank"] for row in points)
    kinds = list(dict.fromkeys((row["arm"], row["batch_size"]) for row in points))
    kinds = kinds if len(kinds) <= len(MARKERS) else []  # no markers for more; cells on the front are named
    for axes, (rows, value, front, title) in zip(grid.flat, sides, strict=True):
        _points(axes, rows, value, colours, kinds)
        _front(axes, [row for row in rows if row[front]], value)
        zero_line(axes)
        axes.set_title(title)
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel("training tokens per run (million)")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    grid[0][0].set_ylabel(GAIN)
    _pareto_legend(canvas, colours, kinds, n_text((row["n_seeds"] for row in cells), "runs per cell"))
    return canvas


def _points(axes: Any, rows: list[Row], value: str, colours: dict[int, str], kinds: list[tuple[str, int]]) -> None:
    for i, kind in enumerate(kinds or [None]):
        ours = [row for row in rows if kind in (None, (row["arm"], row["batch_size"]))]
        axes.scatter(
            [row["mean_tokens"] / 1e6 for row in ours], [row[value] for row in ours], s=38, zorder=3,
            c=[colours[row["rank"]] for row in ours], marker=MARKERS[i % 7], edgecolors=INK, linewidths=0.6,
        )  # fmt: skip


def _front(axes: Any, rows: list[Row], value: str) -> None:
    """Draws the front as steps: the best value at each cost.

    The cells on it are named as far as there is room.
    """
    rows = sorted(rows, key=lambda row: row["mean_tokens"])
    axes.step(
        [row["mean_tokens"] / 1e6 for row in rows], [row[value] for row in rows], where="post", color=COLOURS[1], lw=1.6
    )
    first, last = np.log(axes.dataLim.intervalx)
    named: list[float] = []
    apart = 0.4 if any(row["arm"] for row in rows) else 0.1  # labels with arms are long
    for row in sorted(rows, key=lambda row: -row[value]):
        x = (np.log(row["mean_tokens"] / 1e6) - first) / ((last - first) or 1.0)
        if all(abs(x - other) > apart for other in named):
            named.append(x)
            name = f"{row['arm']} r{row['rank']} b{row['batch_size']}".strip()
            side = {"xytext": (-3, 7), "ha": "right"} if x > 0.5 else {"xytext": (3, 7), "ha": "left"}
            at = row["mean_tokens"] / 1e6, row[value]
            axes.annotate(name, at, textcoords="offset points", fontsize=7.5, zorder=4, **side).set_in_layout(False)


def _pareto_legend(canvas: Canvas, colours: dict[int, str], kinds: list[tuple[str, int]], n: str) -> None:
    from matplotlib.lines import Line2D

    def dot(label: str, colour: str, marker: str) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=colour, markeredgecolor=INK, markeredgewidth=0.6, label=label)

    handles = [dot(f"rank {rank}", colour, "o") for rank, colour in colours.items()]
    for i, (arm, size) in enumerate(kinds):
        handles.append(dot(f"{arm}{', ' if arm else ''}batch {size}", "none", MARKERS[i]))
    handles.append(Line2D([], [], color=COLOURS[1], lw=1.6, label="front"))
    canvas.legend(handles=handles, loc="outside right upper", title=n, title_fontsize=8.5)
