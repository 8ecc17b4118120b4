"""Figures of what a rank costs: the seed-runs that a fixed budget buys, and the footprint."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from rankrl.report.figures.canvas import COLOURS, Canvas, legend_below, log2_axis, panels
from rankrl.report.figures.series import Row, style


def budget(rows: list[Row]) -> Canvas | None:
    """Figure by rank: seed-runs that one budget buys, and the half-width of their 95 % interval.

    None with fewer than two ranks.
    """
    ranks = {row["rank"] for row in rows}
    if len(ranks) < 2:
        return None
    narrow = [row for row in rows if row["ci_halfwidth"] is not None]
    canvas, grid = panels(2 if narrow else 1, 4.4, 3.2)
    grid[0][0].set_ylabel("seed-runs within the budget")
    _by_arm(grid[0][0], rows, "seed_runs")
    if narrow:
        grid[0][1].set_ylabel("mean gain: 95 % half-width\n(fraction correct)")
        _by_arm(grid[0][1], narrow, "ci_halfwidth")
    for axes in grid.flat:
        log2_axis(axes, ranks)
        axes.set_ylim(0, 1.08 * axes.dataLim.y1)
    legend_below(canvas, grid[0][0], title=f"budget: {_time(rows[0]['budget_s'])}")
    return canvas


def _time(seconds: float) -> str:
    unit, size = ("hours", 3600) if seconds >= 7200 else ("minutes", 60) if seconds >= 120 else ("seconds", 1)
    return f"{seconds / size:,.3g} {unit}"


def _by_arm(axes: Any, rows: list[Row], key: str) -> None:
    for i, arm in enumerate(sorted({row["arm"] for row in rows})):
        ours = [row for row in rows if row["arm"] == arm]
        axes.plot(
            [row["rank"] for row in ours], [row[key] for row in ours], label=f"{arm or 'measured'} (n = {len(ours)} ranks)",
            **style(i),
        )  # fmt: skip


def footprint(rows: list[Row]) -> Canvas | None:
    """Figure by rank: adapter parameters and their share of the base; bytes of checkpoint and Adam.

    None with fewer than two ranks.
    """
    ranks = [row["rank"] for row in rows]
    if len(ranks) < 2:
        return None
    canvas, grid = panels(2, 4.6, 3.0)
    parameters, size = grid.flat
    for axes in (parameters, size):
        axes.set_yscale("log")
        log2_axis(axes, ranks)
    parameters.plot(ranks, [row["trainable_params"] for row in rows], color=COLOURS[0], marker="o", lw=1.6)
    parameters.set_ylabel("trainable parameters")
    base = rows[0]["trainable_params"] / rows[0]["fraction_of_base"]
    share = parameters.secondary_yaxis(
        "right", functions=(lambda n: n / base * 100, lambda percent: percent * base / 100)
    )
    share.set_ylabel("share of the base (%)")
    for axis in (parameters.yaxis, size.yaxis, share.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ranks[-1] / ranks[0] < 100 else (1,)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(
            EngFormatter(sep="") if axis is parameters.yaxis else FuncFormatter(lambda v, _: f"{v:g}")
        )
    size.plot(
        ranks, [row["checkpoint_bytes"] / 1e6 for row in rows], color=COLOURS[0], marker="o", lw=1.6, label="checkpoint"
    )
    size.plot(
        ranks,
        [row["optimizer_bytes"] / 1e6 for row in rows],
        color=COLOURS[1],
        marker="s",
        lw=1.6,
        label="Adam's moments",
    )
    size.set_ylabel("size (MB)")
    legend_below(canvas, size, title=f"n = {len(ranks)} ranks, {base:,.0f} parameters in the base")
    return canvas
