"""Figures of curves over PPO steps, of final KL against gain, and of hyperparameters by rank."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rankrl.report.curves import Curve, aligned, points
from rankrl.report.figures.canvas import (
    COLOURS,
    FEW_ARMS,
    INK,
    LINES,
    MARKERS,
    MOST_PANELS,
    MOST_RANKS,
    Canvas,
    legend_below,
    legend_right,
    log2_axis,
    n_text,
    outer,
    panels,
    rank_colours,
    thinned,
    zero_line,
)  # fmt: skip
from rankrl.report.figures.overlays import NOISE, POLICY, Curves
from rankrl.report.figures.pareto import dot
from rankrl.report.figures.series import GAIN, Row, fates, fit, gain, mark, scored, style, window

MOST_LINES = 40
"""Most thin lines of one colour in a panel."""
KNOBS = {
    "alpha": "LoRA alpha",
    "lr": "learning rate",
    "lr_ratio": "learning rate of B / A",
    "max_norm": "max gradient norm",
    "warmup": "warm-up (share of steps)",
    "kl": "KL coefficient",
    "clip_low": "clip below 1 by",
    "clip_high": "clip above 1 by",
}


def drawn(curve: Curve) -> Curve:
    """The curve with only what figures need: whole curves of 10,000 runs would fill the memory."""
    return [{key: line[key] for key in ("step", "accuracy", *POLICY, *NOISE) if key in line} for line in curve]


def learning_curves(curves: Curves, results: list[Row]) -> Canvas | None:
    """Figure: training accuracy against PPO step; runs as thin lines, their mean as a thick one.

    One panel per rank and one colour per arm; the other way round with more than FEW_ARMS arms. At
    most `most_ranks`. None if no curve has an accuracy.
    """
    if not any(points(curve, "accuracy") for curve in curves.values()):
        return None
    ranks = thinned(sorted({run["rank"] for run in results}), most_ranks(results))
    results = [run for run in results if run["rank"] in ranks]
    panel, colour = ("rank", "arm") if len({run["arm"] for run in results}) <= FEW_ARMS else ("arm", "rank")
    values, series = (sorted({run[key] for run in results}) for key in (panel, colour))
    canvas, grid = panels(len(values), 2.7, 2.1, columns=3, sharex=True, sharey=True)
    for axes, value in zip(grid.flat, values, strict=False):
        groups = [[run for run in results if (run[panel], run[colour]) == (value, at)] for at in series]
        for i, runs in enumerate(groups):
            name = str(series[i]) if colour == "arm" else f"rank {series[i]}"
            found = [curves.get(run["run_id"], []) for run in runs]
            _curves(axes, found, i, f"{name}: mean" if name else "mean of the runs")
        n = n_text((len(runs) for runs in groups if runs), "runs")
        axes.set_title(f"rank {value}, {n}" if panel == "rank" else f"{value}, {n}", fontsize=9)
    outer(grid, len(values), "PPO step", "training accuracy\n(fraction correct)")
    legend_below(canvas, *grid.flat, columns=4)
    return canvas


def most_ranks(rows: list[Row]) -> int:
    """Most ranks in a figure that has a panel for each, or for each arm where there are many."""
    return MOST_PANELS if len({row["arm"] for row in rows}) <= FEW_ARMS else MOST_RANKS


def _curves(axes: Any, curves: list[Curve], i: int, label: str) -> None:
    """Draws the runs of one series and their mean, at each step over the runs that reached it."""
    steps, values = aligned(curves, "accuracy")
    if len(steps):
        paths = [np.column_stack((steps, value)) for value in values]
        axes.add_collection(
            LineCollection(thinned(paths, MOST_LINES), colors=COLOURS[i % 7], linewidths=0.7, alpha=0.35)
        )
        axes.plot(steps, np.nanmean(values, axis=0), color=COLOURS[i % 7], ls=LINES[i // 7 % 4], lw=2, label=label)


def last_kl(curve: Curve) -> float | None:
    """KL to the base (nats per token), mean over the last tenth of the steps; None without KL."""
    values = points(curve, "kl_ref")
    return float(np.mean([kl for step, kl in values if step > 0.9 * values[-1][0]])) if values else None


def kl_and_gain(curves: Curves, results: list[Row]) -> Canvas | None:
    """Figure: gain against the final KL to the base, one dot per run; None with fewer than two."""
    ends = {run["run_id"]: kl for run in results if (kl := last_kl(curves.get(run["run_id"], []))) is not None}
    runs = [run for run in results if run["run_id"] in ends]
    gains = [gain(run) for run in runs if scored(run)]
    if len(gains) < 2:
        return None
    canvas, grid = panels(1, 6.6, 3.8)
    (axes,) = grid.flat
    names, colours, arms = fates(runs), rank_colours(run["rank"] for run in runs), sorted({run["arm"] for run in runs})
    arms = arms if len(arms) <= len(MARKERS) else []  # no markers for more
    for i, arm in enumerate(arms or [None]):
        ours = thinned([run for run in runs if scored(run) and arm in (None, run["arm"])])
        axes.scatter(
            [ends[run["run_id"]] for run in ours], [*map(gain, ours)], c=[colours[run["rank"]] for run in ours],
            marker=MARKERS[i], edgecolors=INK, s=26, linewidths=0.4, alpha=0.85,
        )  # fmt: skip
    mark(axes, runs, lambda run: ends[run["run_id"]], gain, names)
    zero_line(axes)
    fit(axes, window(gains, []), bool(names))
    axes.set_xlabel(f"KL to the base at the end (nats per token; n = {len(runs)} runs)")
    axes.set_ylabel(GAIN)
    counts = Counter(run["rank"] for run in runs)
    handles = [dot(f"rank {rank} (n = {counts[rank]})", colour, MARKERS[0]) for rank, colour in colours.items()]
    handles += [dot(arm, "none", MARKERS[i]) for i, arm in enumerate(arms) if arm]
    legend_right(canvas, handles + axes.get_legend_handles_labels()[0])
    return canvas


def knobs_by_rank(knobs: dict[tuple[str, int], dict[str, float]]) -> Canvas | None:
    """Figure: hyperparameters of the runs against rank, one panel each.

    `knobs`: (arm, rank) -> knob -> value. Arms that share all values share a line. None without
    known knobs, or with fewer than two ranks.
    """
    names = [name for name in KNOBS if any(name in values for values in knobs.values())]
    if not names or len({rank for _, rank in knobs}) < 2:
        return None
    lines: dict[str, list[str]] = {}
    for arm in sorted({arm for arm, _ in knobs}):
        lines.setdefault(repr([(rank, knobs[of, rank]) for of, rank in sorted(knobs) if of == arm]), []).append(arm)
    columns = min(len(names), 4)
    canvas, grid = panels(len(names), 2.5, 1.7, columns)
    for at, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        for i, arms in enumerate(lines.values()):
            ranks = sorted(rank for arm, rank in knobs if arm == arms[0] and name in knobs[arm, rank])
            label = f"{', '.join(arms) if len(arms) <= FEW_ARMS else f'{len(arms)} arms'}".strip() or "all runs"
            label += f" (n = {len(ranks)} ranks)"
            axes.plot(
                ranks, [knobs[arms[0], rank][name] for rank in ranks], ms=4, label=label, **style(i)
            )  # fmt: skip
        axes.set_title(KNOBS[name], fontsize=9)
        axes.set_ylim(0, 1.15 * max(values.get(name, 0) for values in knobs.values()) or 1)
        log2_axis(axes, {rank for _, rank in knobs})
        axes.tick_params(labelsize=7, labelbottom=at + columns >= len(names))
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("LoRA rank" if at + columns >= len(names) else "")
    legend_below(canvas, grid.flat[0])
    return canvas
