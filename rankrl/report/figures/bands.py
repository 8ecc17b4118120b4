"""Figure of signal and reliability by rank: mean gain, and share of runs with a gain >= 0."""

from __future__ import annotations

from typing import Any

from rankrl.report.figures.canvas import (
    FEW_ARMS,
    INK,
    MOST_RANKS,
    Canvas,
    legend_below,
    log2_axis,
    n_text,
    panels,
    shifts,
    thinned,
    zero_line,
)
from rankrl.report.figures.series import Row, bars, fit, known, lines, reliability, signal, style, window

BANDS = (("low ranks", 1, 4), ("middle", 5, 32), ("high", 33, 10**6))
Best = set[tuple[str, int]]
"""Pairs (arm, rank) that are not shown to be below another one."""


def rank_bands(families: list[Row], best: Best) -> Canvas | None:
    """Figure by rank: mean gain above, share of runs with gain >= 0 below.

    More than FEW_ARMS arms would hide each other, so the figure is then by arm. None with one rank
    and few arms.
    """
    families = known(families)
    ranks, arms = sorted({row["rank"] for row in families}), sorted({row["arm"] for row in families})
    if len(arms) > FEW_ARMS:
        return _arm_bands(families, best, arms, thinned(ranks, MOST_RANKS))
    if len(ranks) < 2:
        return None
    canvas, grid = panels(2, 6.6, 2.5, columns=1, sharex=True)
    above, below = grid.flat
    span = _span(families)
    for axes in (above, below):
        _shade(axes, ranks, named=axes is above)
    lines(above, families, "rank", signal, span)
    lines(below, families, "rank", reliability, (0.0, 1.0))
    beside = dict(zip(arms, shifts(len(arms)), strict=True))
    ours = [row for row in families if (row["arm"], row["rank"]) in best]
    _ring(above, [(row["rank"] * beside[row["arm"]], row["mean_gain"]) for row in ours])
    zero_line(above)
    fit(above, span)
    above.set_ylabel("signal: mean gain\n(fraction correct)")
    below.set_ylabel("reliability: share\nof runs with gain ≥ 0")
    below.set_ylim(-0.03, 1.06)
    log2_axis(below, ranks)
    legend_below(canvas, above)
    return canvas


def _span(families: list[Row]) -> tuple[float, float]:
    return window([row["mean_gain"] for row in families], [row["pooled_ci95"] for row in families])


def _shade(axes: Any, ranks: list[int], named: bool) -> None:
    """Shades every other of the BANDS in which the grid has ranks.

    `named`: also write each band's name above the axes.
    """
    for i, (name, low, high) in enumerate(BANDS):
        inside = [rank for rank in ranks if low <= rank <= high]
        if not inside:
            continue
        left, right = inside[0] / 2**0.5, inside[-1] * 2**0.5
        axes.axvspan(left, right, color=INK, alpha=0.07 * (i % 2 == 0), lw=0)
        if named:
            middle, top = (left * right) ** 0.5, axes.get_xaxis_transform()
            axes.text(middle, 1.02, name, transform=top, ha="center", va="bottom", fontsize=8.5)


def _ring(axes: Any, places: list[tuple[float, float]]) -> None:
    if places:
        ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.1}
        axes.scatter(*zip(*places, strict=True), s=130, label="not shown to be below another one", **ring)


def _arm_bands(families: list[Row], best: Best, arms: list[str], ranks: list[int]) -> Canvas:
    """Figure by arm: one row per arm, signal left, reliability right, one colour per rank."""
    canvas, grid = panels(2, 4.4, 0.36 * len(arms) + 0.6, sharey=True)
    left, right = grid.flat
    span, rings = _span(families), []
    for i, rank in enumerate(ranks):
        rows = [row for row in families if row["rank"] == rank]
        y = [len(arms) - arms.index(row["arm"]) + 0.6 * (0.5 - (i + 0.5) / len(ranks)) for row in rows]
        label = f"rank {rank}: mean, 95 % interval ({n_text((row['n_seeds'] for row in rows), 'runs per arm')})"
        look = {"ms": 5, "capsize": 2.5, "label": label, **style(i), "ls": ""}
        for axes, read, room in ((left, signal, span), (right, reliability, (0.0, 1.0))):
            bars(axes, y, [read(row) for row in rows], room, flat=True, **look)
        rings += [(row["mean_gain"], at) for row, at in zip(rows, y, strict=True) if (row["arm"], rank) in best]
    _ring(left, rings)
    left.axvline(0, color=INK, lw=0.8, ls="--", alpha=0.5, zorder=0)
    left.set_xlim(span[0] - 0.06 * (span[1] - span[0]), span[1] + 0.06 * (span[1] - span[0]))
    left.set_yticks(range(len(arms), 0, -1), arms)
    left.set_xlabel("signal: mean gain (fraction correct)")
    right.set_xlabel("reliability: share of runs with gain ≥ 0")
    right.set_xlim(-0.03, 1.06)
    legend_below(canvas, left, columns=2)
    return canvas
