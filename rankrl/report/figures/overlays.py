"""Figures of curves over PPO steps in which ranks lie over each other: median and middle half."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from rankrl.report.curves import Curve, aligned, points
from rankrl.report.figures.canvas import (
    MOST_PANELS,
    MOST_RANKS,
    Canvas,
    legend_right,
    n_text,
    outer,
    panels,
    rank_colours,
    thinned,
)
from rankrl.report.figures.series import Row

Curves = dict[str, Curve]
"""run_id -> curve."""
MOST_ARMS = 4
"""Most arms with a row of panels each."""
POLICY = {
    "kl_ref": "KL to the base\n(nats per token)",
    "entropy": "entropy\n(nats per token)",
    "clip_frac": "clipped share",
    "lr_factor": "factor on the rate\n(trust region)",
}
NOISE = {
    "grad_cosine": "gradient cosine",
    "ess_frac": "effective sample\n(share of tokens)",
    "advantage_sd": "advantage sd",
    "delta_norm": "norm of delta W",
    "norm_clipped_frac": "steps with a\nclipped gradient",
    "explained_variance": "explained variance\nof the returns",
    "clip_frac": "clipped share\nof tokens",
    "uniform_group_frac": "share of\nuniform groups",
}
SINCE_LONG = {"clip_frac", "uniform_group_frac"}
"""What is drawn beside the rest of NOISE, and not alone: records of before have these, too."""


def held_out_by_step(curves: Curves, results: list[Row]) -> Canvas | None:
    """Figure: held-out score by PPO step, a panel per arm; None without evaluations in between.

    `curves` hold `held_out` (see report/held_out.py).
    """
    runs = [run for run in results if len(points(curves.get(run["run_id"], []), "held_out")) > 2]
    arms = sorted({run["arm"] for run in runs})
    if not runs:
        return None
    shown = arms[:MOST_PANELS]
    size = (3.2, 2.3) if len(shown) > 1 else (6.2, 3.7)
    canvas, grid = panels(len(shown), *size, 2 if len(shown) == 4 else 3, sharex=True, sharey=True)
    colours = rank_colours(overlaid(runs))
    for axes, arm in zip(grid.flat, shown, strict=False):
        ours = [run for run in runs if run["arm"] == arm]
        _overlay(axes, curves, ours, "held_out", colours, marker=".")
        axes.set_title(f"{arm}{', ' if arm else ''}{_n(ours)}")
    outer(grid, len(shown), "PPO step", "held-out score\n(fraction correct)")
    _rank_legend(canvas, colours)
    return canvas


def policy_by_step(curves: Curves, results: list[Row]) -> Canvas | None:
    """Figure: KL to the base, entropy, clipped share, and what a trust region multiplies the rate
    by, by PPO step, a row of panels per arm.

    None if no curve has one of them.
    """
    names = [name for name in POLICY if any(points(curve, name) for curve in curves.values())]
    arms = sorted({run["arm"] for run in results})[:MOST_ARMS]
    if not names:
        return None
    canvas, grid = panels(len(names) * len(arms), 2.9, 2.3 if len(arms) > 1 else 2.9, len(names), sharex=True)
    colours = rank_colours(overlaid(results))
    for line, arm in zip(grid, arms, strict=True):
        ours = [run for run in results if run["arm"] == arm]
        for axes, name in zip(line, names, strict=True):
            _overlay(axes, curves, ours, name, colours)
            axes.set_ylabel(POLICY[name])
        line[0].set_title(f"{arm}{', ' if arm else ''}{_n(ours)}")
    for axes in grid[-1]:
        axes.set_xlabel("PPO step")
    _rank_legend(canvas, colours)
    return canvas


def noise_by_step(curves: Curves, results: list[Row]) -> Canvas | None:
    """Figure: what tells learning from noise by PPO step, a panel each; with arms, a column each.

    At most MOST_PANELS: of several arms, the first of NOISE. None if no curve has more of it than
    runs have recorded since long.
    """
    names = [name for name in NOISE if any(points(curve, name) for curve in curves.values())]
    if not {*names} - SINCE_LONG:
        return None
    arms = sorted({run["arm"] for run in results})[:MOST_ARMS]
    names, columns = names[: MOST_PANELS // len(arms)], MOST_ARMS if len(arms) == 1 else len(arms)
    canvas, grid = panels(len(names) * len(arms), 2.5, 1.7, columns, sharex=True)
    colours = rank_colours(overlaid(results))
    for i, (name, arm) in enumerate(product(names, arms)):
        axes, ours = grid.flat[i], [run for run in results if run["arm"] == arm]
        _overlay(axes, curves, ours, name, colours)
        axes.set_ylabel(NOISE[name] if arm == arms[0] else "")
        axes.set_title(f"{arm}{', ' if arm else ''}{_n(ours)}" if name == names[0] else "")
        lowest = i + grid.shape[1] >= len(names) * len(arms)
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("PPO step" if lowest else "")
    _rank_legend(canvas, colours)
    return canvas


def overlaid(results: list[Row]) -> list[int]:
    """The ranks that are drawn: all, or MOST_RANKS of them, evenly chosen."""
    return thinned(sorted({run["rank"] for run in results}), MOST_RANKS)


def last_values(curves: Curves, results: list[Row], name: str) -> str:
    """The medians at the last step in words, over all arms: `rank 1: 0.3; rank 8: 0.4.`"""
    found = []
    for rank in overlaid(results):
        ours = [points(curves.get(run["run_id"], []), name) for run in results if run["rank"] == rank]
        if ends := [values[-1][1] for values in ours if values]:
            found.append(f"rank {rank}: {np.median(ends):.4g}")
    return "; ".join(found) + "."


def _n(runs: list[Row]) -> str:
    counts = [sum(run["rank"] == rank for run in runs) for rank in sorted({run["rank"] for run in runs})]
    return n_text(counts, "runs per rank")


def _overlay(axes: Any, curves: Curves, runs: list[Row], name: str, colours: dict[int, str], marker: str = "") -> None:
    """Draws, for each rank of `colours`, the median of its runs and a band of their middle half."""
    for rank, colour in colours.items():
        ours = [curves.get(run["run_id"], []) for run in runs if run["rank"] == rank]
        steps, values_RS = aligned(ours, name)
        if len(steps):
            low, middle, high = np.nanquantile(values_RS, (0.25, 0.5, 0.75), axis=0)
            axes.plot(steps, middle, color=colour, lw=1.6, marker=marker, label=f"rank {rank}")
            if len(values_RS) > 1:
                axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)


def _rank_legend(canvas: Canvas, colours: dict[int, str]) -> None:
    handles = [Line2D([], [], color=colour, lw=1.6, label=f"rank {rank}") for rank, colour in colours.items()]
    legend_right(canvas, handles[::-1])
