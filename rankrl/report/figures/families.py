"""Figures of families of runs by rank or batch size: gain, efficiency, mean and best, arms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankrl.report.figures.canvas import (
    COLOURS,
    FEW_ARMS,
    INK,
    Canvas,
    legend_below,
    log2_axis,
    n_text,
    outer,
    panels,
    thinned,
    zero_line,
)  # fmt: skip
from rankrl.report.figures.series import GAIN, Ends, Point, Row, dots, lines, signal
from rankrl.report.statistics.cells import outcome_gain


def gain_by_rank(results: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: gain over the base against rank; a dot per run, mean and 95 % interval."""
    return _by_rank(results, families, outcome_gain, signal, GAIN)


def efficiency_by_rank(results: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: gain per million training tokens against rank.

    The interval is that of the mean gain, divided by the mean tokens.
    """
    families = [row for row in families if row["mean_tokens"]]
    results = [run for run in results if run["tokens_total"]]

    def point(row: Row) -> tuple[float, Ends]:
        millions, (gain, ends) = row["mean_tokens"] / 1e6, signal(row)
        return gain / millions, (ends[0] / millions, ends[1] / millions) if ends else None

    label = "gain per million tokens\n(fraction correct)"
    return _by_rank(results, families, lambda run: outcome_gain(run) / run["tokens_total"] * 1e6, point, label)


def _by_rank(
    results: list[Row],
    families: list[Row],
    value: Callable[[Row], float],
    point: Point,
    label: str,
) -> Canvas | None:
    """Figure by rank: `value` of every run as a dot, `point` of every family as a line.

    More than FEW_ARMS arms get a panel each, because dots would hide them in one panel. None
    without arms.
    """
    arms = sorted({row["arm"] for row in families})
    if not arms:
        return None
    groups = [arms] if len(arms) <= FEW_ARMS else [[arm] for arm in arms]
    width, height = (6.6, 3.7) if len(groups) == 1 else (3.2, 2.3)
    canvas, grid = panels(len(groups), width, height, sharex=True, sharey=True)
    for axes, group in zip(grid.flat, groups, strict=False):
        runs, rows = ([row for row in table if row["arm"] in group] for table in (results, families))
        if len(groups) > 1:
            axes.set_title(f"{group[0]} ({n_text((row['n_seeds'] for row in rows), 'per rank')})")
        dots(axes, runs, "rank", value)
        lines(axes, rows, "rank", point)
        zero_line(axes)
        log2_axis(axes, {row["rank"] for row in families})
    outer(grid, len(groups), "LoRA rank", label)
    if len(groups) == 1:
        legend_below(canvas, grid.flat[0], columns=2)
    return canvas


def batch_families(results: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: gain and training tokens by batch size; None with fewer than two batch sizes."""
    sizes = sorted({row["batch_size"] for row in families})
    if len(sizes) < 2:
        return None
    canvas, grid = panels(2, 4.4, 3.4)
    gain, tokens = grid.flat
    if len({row["arm"] for row in families}) <= FEW_ARMS:
        dots(gain, results, "batch_size", outcome_gain)
    lines(gain, families, "batch_size", signal)
    lines(tokens, families, "batch_size", lambda row: (row["mean_tokens"] / 1e6, None))
    zero_line(gain)
    gain.set_ylabel(GAIN)
    tokens.set_ylabel("training tokens per run (million)")
    tokens.set_ylim(bottom=0)
    for axes in (gain, tokens):
        log2_axis(axes, sizes, "batch size (prompts per PPO step)")
    legend_below(canvas, gain, columns=2)
    return canvas


def mean_and_best(cells: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: mean and best run by rank, the gap between them, and where luck alone puts the best.

    That range is the 95 % range of the best of n normal values (`upside_null`). One panel per arm
    and batch size; per arm if these would be more than nine. None if every row has one run.
    """
    groups = _groups(cells, ("arm", "batch_size"))
    if len(groups) > 9:
        groups = _groups(families, ("arm",))
    if all(row["n_seeds"] < 2 for rows in groups.values() for row in rows):
        return None
    columns = 2 if len(groups) == 4 else 3
    width, height = (3.4, 2.1) if len(groups) > 1 else (6.6, 3.0)
    canvas, grid = panels(len(groups), width, height, columns, sharex=True, sharey=True)
    for axes, (name, rows) in zip(grid.flat, groups.items(), strict=False):
        axes.set_title(f"{name}{', ' if name else ''}{n_text((row['n_seeds'] for row in rows), 'runs per rank')}")
        _gaps(axes, rows)
        zero_line(axes)
        log2_axis(axes, {row["rank"] for row in rows})
    outer(grid, len(groups), "LoRA rank", GAIN)
    legend_below(canvas, grid.flat[0], columns=4)
    return canvas


def _groups(rows: list[Row], keys: tuple[str, ...]) -> dict[str, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    words = {"arm": "{}", "batch_size": "batch {}"}
    return {
        ", ".join(words[k].format(v) for k, v in zip(keys, at, strict=True) if v != ""): groups[at]
        for at in sorted(groups)
    }


def _gaps(axes: Any, rows: list[Row]) -> None:
    ranks, means = [row["rank"] for row in rows], [row["mean_gain"] for row in rows]
    lucky = [row for row in rows if row.get("upside_null95") and row["sd_gain"]]
    low, high = ([row["mean_gain"] + row["sd_gain"] * row["upside_null95"][end] for row in lucky] for end in (0, 1))
    if lucky:
        label = "best by luck alone, 95 % range"
        axes.vlines([row["rank"] for row in lucky], low, high, color=INK, alpha=0.18, lw=9, label=label)
    best = [row["best_gain"] for row in rows]
    axes.vlines(ranks, means, best, color=COLOURS[0], lw=1.6, label="gap")
    axes.scatter(ranks, means, s=34, color=COLOURS[0], marker="o", zorder=3, label="mean")
    axes.scatter(ranks, best, s=34, color=COLOURS[1], marker="^", zorder=3, label="best run")


def difference_by_arm(rows: list[Row]) -> Canvas | None:
    """Figure: paired difference in gain to the reference arm; one panel per rank and batch size.

    Each arm is one row of a panel. None without rows.
    """
    cells = sorted({(row["rank"], row["batch_size"]) for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if not rows:
        return None
    wide = min(len(cells), 3)
    canvas, grid = panels(len(cells), 2.5 + 1.2 / wide, 0.34 * len(arms) + 0.9, columns=3, sharex=True, sharey=True)
    for axes, cell in zip(grid.flat, cells, strict=False):
        for row in rows:
            if (row["rank"], row["batch_size"]) == cell:
                _difference(axes, row, len(arms) - arms.index(row["arm"]))
        axes.axvline(0, color=INK, lw=0.8, ls="--", alpha=0.5, zorder=0)
        axes.set_title(f"rank {cell[0]}, batch {cell[1]}")
    grid[0][0].set_yticks(range(len(arms), 0, -1), arms)
    grid[0][0].set_ylim(0.4, len(arms) + 0.7)
    outer(grid, len(cells), "difference in gain\n(fraction correct)")
    legend_below(canvas, grid[0][0], title=n_text((row["n_pairs"] for row in rows), "pairs of one seed"))
    return canvas


def _difference(axes: Any, row: Row, y: int) -> None:
    """Draws one row at height y: pairs, mean, its own 95 % interval (thick), family-wise (thin)."""
    labels = ("pair", "mean, 95 % interval", "interval for all at once") if not axes.has_data() else ("", "", "")
    dots = thinned(row["differences"], 100)
    axes.scatter(dots, [y + 0.22] * len(dots), s=18, alpha=0.6, color=COLOURS[1], linewidths=0, label=labels[0])
    mean = row["mean_difference"]
    for key, lw, cap, label in (("family_ci95", 0.8, 0, labels[2]), ("difference_ci95", 1.8, 3, labels[1])):
        ends = row.get(key)
        if ends or key == "difference_ci95":
            half = [[max(mean - ends[0], 0)], [max(ends[1] - mean, 0)]] if ends else None
            axes.errorbar([mean], [y], xerr=half, color=COLOURS[0], marker="o", ms=5, capsize=cap, lw=lw, label=label)
