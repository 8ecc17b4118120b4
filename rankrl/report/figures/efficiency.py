"""Figure of token efficiency: gain per million training tokens, by rank."""

from __future__ import annotations

from math import inf
from typing import Any

from rankrl.report.figures.canvas import (
    COLOURS,
    FEW_ARMS,
    MARKERS,
    Canvas,
    legend_below,
    log2_axis,
    n_text,
    outer,
    panels,
    shifts,
    thinned,
    zero_line,
)
from rankrl.report.figures.families import panel_groups
from rankrl.report.figures.series import BESIDE, Ends, Names, Row, Span, bars, fates, fit, mark, scored, style, window
from rankrl.report.statistics.cells import by_key
from rankrl.report.statistics.intervals import t_interval

Efficiency = tuple[float, Ends, list[float]]
"""(gain per million tokens of a group of runs, its 95 % interval, the same of each seed alone)."""


def efficiency(runs: list[Row]) -> Efficiency:
    """Summed gain over summed tokens (million) of scored runs, with the seed as unit.

    The interval is Student's t of the linearised ratio R: R + (g_s - R t_s) / mean t over seeds s
    with gains g_s and tokens t_s, whose mean is R.
    """
    seeds = by_key(runs, ("seed",)).values()
    gains, tokens = ([sum(run[key] for run in seed) for seed in seeds] for key in ("gain", "tokens_total"))
    millions = [n / 1e6 for n in tokens]
    ratio, mean = sum(gains) / sum(millions), sum(millions) / len(millions)
    found = t_interval([ratio + (g - ratio * t) / mean for g, t in zip(gains, millions, strict=True)])
    ends = (found[0], found[1]) if found else None
    return ratio, ends, [g / t for g, t in zip(gains, millions, strict=True)]


def efficiency_by_rank(results: list[Row]) -> Canvas | None:
    """Figure: gain per million training tokens against rank, every seed a dot.

    One panel per batch size, on which tokens depend most; with more than FEW_ARMS arms or nine
    batch sizes one per arm. None without a score.
    """
    results = [run for run in results if run["tokens_total"] or not scored(run)]
    groups = panel_groups(results, ("batch_size",))
    few = len({run["arm"] for run in results}) <= FEW_ARMS
    if not few or len(groups) > 9:
        groups = panel_groups(results, ("arm",))
    found = {name: _efficiencies(runs) for name, runs in groups.items()}
    points = [point for rows in found.values() for point in rows.values()]
    if not points:
        return None
    span = window(
        [v for value, _, dots in points for v in (value, *dots)], [ends for _, ends, _ in points], (-inf, inf)
    )
    several, names = len(groups) > 1, fates(results)
    columns = 2 if len(groups) == 4 else 3
    canvas, grid = panels(len(groups), *((3.4, 2.3) if several else (6.6, 3.7)), columns, sharex=True, sharey=True)
    for axes, (title, rows) in zip(grid.flat, found.items(), strict=False):
        axes.set_title(", ".join(filter(None, (title, _seeds(rows)))))
        _draw(axes, rows, groups[title], span, names, few)
        zero_line(axes)
        fit(axes, span, bool(names))
        log2_axis(axes, {run["rank"] for run in results})
    outer(grid, len(groups), "LoRA rank", "gain per million tokens\n(fraction correct)")
    legend_below(canvas, *grid.flat)
    return canvas


def in_words(results: list[Row]) -> str:
    """Efficiencies over all batch sizes in words: `rank 1: 0.002; rank 2: 0.05.`"""
    rows = _efficiencies([run for run in results if run["tokens_total"]])
    return "; ".join(f"{arm}{' ' if arm else ''}rank {rank}: {row[0]:.4g}" for (arm, rank), row in rows.items()) + "."


def _efficiencies(runs: list[Row]) -> dict[tuple[str, int], Efficiency]:
    """(arm, rank) -> efficiency of its scored runs."""
    return {at: efficiency(ours) for at, ours in by_key([*filter(scored, runs)], ("arm", "rank")).items()}


def _seeds(rows: dict[Any, Efficiency]) -> str:
    return n_text((len(dots) for _, _, dots in rows.values()), "seeds per rank") if rows else ""


def _draw(
    axes: Any, rows: dict[tuple[str, int], Efficiency], runs: list[Row], span: Span, names: Names, few: bool
) -> None:
    arms = sorted({run["arm"] for run in runs})
    shift = dict(zip(arms, shifts(len(arms)), strict=True))
    for i, arm in enumerate(arms):
        ours = {rank: row for (of, rank), row in rows.items() if of == arm}
        name, dots = (
            f"{arm}: " if arm and few else "",
            thinned([(rank, dot) for rank, row in ours.items() for dot in row[2]]),
        )
        axes.scatter(
            [rank * shift[arm] * BESIDE for rank, _ in dots], [dot for _, dot in dots], s=20, alpha=0.7,
            color=COLOURS[i % 7], marker=MARKERS[i % 7], linewidths=0, zorder=2, label=f"{name}seed",
        )  # fmt: skip
        points = [(value, ends) for value, ends, _ in ours.values()]
        look = {"label": f"{name}all seeds, 95 % interval", "ms": 6, "capsize": 3.5, "zorder": 3, **style(i)}
        bars(axes, [rank * shift[arm] for rank in ours], points, span, **look)
    mark(axes, runs, lambda run: run["rank"] * shift[run["arm"]] * BESIDE, _per_million, names)


def _per_million(run: Row) -> float:
    return run["gain"] / run["tokens_total"] * 1e6
