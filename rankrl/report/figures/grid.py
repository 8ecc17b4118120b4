"""Figures of cells (rank x batch size): heat maps, and distributions over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np

from rankrl.recipe.axes import value_slug
from rankrl.report.axis_values import axis_title, shown_value
from rankrl.report.figures.canvas import (
    COLOURS,
    MAX_DOTS,
    MOST_PANELS,
    Canvas,
    legend_below,
    n_text,
    outer,
    panels,
    thinned,
    zero_line,
)  # fmt: skip
from rankrl.report.figures.families import panel_groups
from rankrl.report.figures.series import GAIN, Row, Span, fates, fit, gain, known, mark, scored, window

MOST_MAPS = 4
"""Most arms with heat maps."""
MOST_COLUMNS = 16
"""Most ranks of a heat map or of a panel of distributions, and most batch sizes."""
SHADES = 33
"""An odd number, so that one is white around 0; matplotlib makes a bitmap of a bar with over 50."""
GAINS, RISKS = "RdBu", "Purples"
"""Loss red and gain blue, which every common colour blindness tells apart; the more, the darker."""


def heat_maps(cells: list[Row]) -> Canvas | None:
    """Figure: heat maps of mean gain and negative-gain risk over rank x batch size, a row per arm.

    Gains are coloured around 0 with limits of one size, risks from 0 to 1. None with fewer than two
    ranks or batch sizes.
    """
    ranks, sizes = (thinned(sorted({row[key] for row in cells}), MOST_COLUMNS) for key in ("rank", "batch_size"))
    cells = [row for row in cells if row["rank"] in ranks and row["batch_size"] in sizes]
    if len(ranks) < 2 or len(sizes) < 2 or not known(cells):
        return None
    arms = sorted({row["arm"] for row in cells})
    width, height = max(0.46 * len(ranks) + 0.6, 4.2), 0.38 * len(sizes) + 0.8
    canvas, grid = panels(2 * len(arms), width, height, columns=2, sharex=True, sharey=True)
    widest = max(abs(row["mean_gain"]) for row in known(cells)) or 1.0
    for (left, right), arm in zip(grid, arms, strict=True):
        ours = [row for row in cells if row["arm"] == arm]
        name, n = f"{arm}: " if arm else "", n_text((row["n_seeds"] for row in ours), "runs per cell")
        left.set_title(f"{name}mean gain ({n})")
        right.set_title(f"{name}runs with gain < 0 ({n})")
        marks = {size: str(size) for size in sizes}
        _map(left, known(ours), ranks, ("batch_size", marks), _gain, GAINS, (-widest, widest))
        _map(right, ours, ranks, ("batch_size", marks), _risk, RISKS, (0.0, 1.0))
        left.set_ylabel("batch size (prompts)")
    for axes in grid[-1]:
        axes.set_xlabel("LoRA rank")
    return canvas


def axis_maps(rows: list[Row], axes: list[Row]) -> Canvas | None:
    """Figure: heat maps of mean gain and negative-gain risk over rank x value, a row per axis.

    `rows`: statistics by axis, rank and value. `axes`: key and values of each axis; shown are the
    first MOST_MAPS with two values at least. None without any.
    """
    axes = [axis for axis in axes if len(axis["values"]) > 1][:MOST_MAPS]
    ranks = thinned(sorted({row["rank"] for row in rows}), MOST_COLUMNS)
    if not axes or not known(rows):
        return None
    most = min(max(len(axis["values"]) for axis in axes), MOST_COLUMNS)
    width, height = max(0.46 * len(ranks) + 0.6, 4.2), 0.38 * most + 0.8
    canvas, grid = panels(2 * len(axes), width, height, columns=2, sharex=True, sharey="row")
    widest = max(abs(row["mean_gain"]) for row in known(rows)) or 1.0
    for (left, right), axis in zip(grid, axes, strict=True):
        values = axis["values"]
        values = sorted(values) if all(type(value) in (int, float) for value in values) else values
        marks = {value_slug(value): shown_value(value) for value in thinned(values, MOST_COLUMNS)}
        ours = [row | {"value": value_slug(row["value"])} for row in rows if row["axis"] == axis["key"]]
        ours = [row for row in ours if row["rank"] in ranks and row["value"] in marks]
        n = n_text((row["n_seeds"] for row in ours), "runs per value")
        left.set_title(f"mean gain ({n})")
        right.set_title(f"runs with gain < 0 ({n})")
        _map(left, known(ours), ranks, ("value", marks), _gain, GAINS, (-widest, widest))
        _map(right, ours, ranks, ("value", marks), _risk, RISKS, (0.0, 1.0))
        left.set_ylabel(axis_title(axis["key"]))
    for below in grid[-1]:
        below.set_xlabel("LoRA rank")
    return canvas


def _gain(row: Row) -> tuple[float, str]:
    return row["mean_gain"], f"{row['mean_gain']:+.3f}"


def _risk(row: Row) -> tuple[float, str]:
    return row["negative_gain_risk"], f"{row['negative_runs']}/{row['n_seeds']}"


def _map(
    axes: Any,
    cells: list[Row],
    ranks: list[int],
    lines: tuple[str, dict[Any, str]],
    read: Callable[[Row], tuple[float, str]],
    colours: str,
    span: Span,
) -> None:
    """Draws one heat map; a cell without runs stays empty.

    `lines`: the key of the vertical axis, and its values with their labels. `read`: row -> (value,
    text in the cell). `span`: lowest and highest value of the colours.
    """
    key, marks = lines
    places = [(list(marks).index(row[key]), ranks.index(row["rank"])) for row in cells]
    values = np.full((len(marks), len(ranks)), np.nan)
    for row, place in zip(cells, places, strict=True):
        values[place] = read(row)[0]
    shades = matplotlib.colormaps[colours].resampled(SHADES)
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=shades, vmin=span[0], vmax=span[1])
    axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=12, ticks=[span[0], sum(span) / 2, span[1]], format="%.2g")
    for row, (y, x) in zip(cells, places, strict=True):
        value, text = read(row)
        ink = readable(mesh.cmap(mesh.norm(value)))
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(np.arange(len(ranks)) + 0.5, [str(rank) for rank in ranks])
    axes.set_yticks(np.arange(len(marks)) + 0.5, list(marks.values()))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def readable(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever has more contrast on the colour `rgba` (luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return "#000000" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.18 else "#ffffff"


def distributions(results: list[Row]) -> Canvas | None:
    """Figure: gain of every run by rank, with quartiles and median.

    One panel per arm and batch size; per arm if these would be more than MOST_PANELS. None with
    fewer than two scored runs per panel on average.
    """
    ranks = thinned(sorted({run["rank"] for run in results}), MOST_COLUMNS)
    results = [run for run in results if run["rank"] in ranks]
    groups = panel_groups(results, ("arm", "batch_size"))
    if len(groups) > MOST_PANELS:
        groups = panel_groups(results, ("arm",))
    gains = [*map(gain, filter(scored, results))]
    if len(gains) < 2 * len(groups):
        return None
    wide, high = (2.6, 2.3) if len(groups) > 1 else (6.6, 3.2)
    names, columns = fates(results), 2 if len(groups) in (2, 4) else 3
    canvas, grid = panels(len(groups), max(0.34 * len(ranks) + 1, wide), high, columns, sharex=True, sharey=True)
    for axes, (title, runs) in zip(grid.flat, groups.items(), strict=False):
        cells = [sorted(gain(run) for run in runs if run["rank"] == rank and scored(run)) for rank in ranks]
        n = n_text((len(cell) for cell in cells if cell), "per rank") if any(cells) else "no scores"
        axes.set_title("\n".join(filter(None, (title, n))), fontsize=9)
        _distributions(axes, cells, max(MAX_DOTS // (len(groups) * len(ranks)), 3))
        mark(axes, runs, lambda run: ranks.index(run["rank"]), gain, names)
        zero_line(axes)
        axes.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    fit(grid.flat[0], window(gains, []), bool(names))
    outer(grid, len(groups), "LoRA rank", GAIN)
    legend_below(canvas, *grid.flat)
    return canvas


def _distributions(axes: Any, cells: list[list[float]], most: int) -> None:
    """Draws quartiles, median and at most `most` dots of each cell; `cells` hold sorted gains."""
    filled = [(x, cell) for x, cell in enumerate(cells) if cell]
    if not filled:
        return
    x = np.array([x for x, _ in filled])
    low, middle, high = np.array([np.quantile(cell, (0.25, 0.5, 0.75)) for _, cell in filled]).T
    axes.vlines(x, low, high, color=COLOURS[0], alpha=0.3, lw=9, label="middle half")
    axes.hlines(middle, x - 0.3, x + 0.3, color=COLOURS[0], lw=2, label="median")
    # 2.4 rad is the golden angle, which spreads the dots sideways without a pattern
    dots = [(at + 0.22 * np.sin(2.4 * i), gain) for at, cell in filled for i, gain in enumerate(thinned(cell, most))]
    axes.scatter(*np.transpose(dots), s=12, color=COLOURS[1], alpha=0.7, linewidths=0, zorder=3, label="run")
