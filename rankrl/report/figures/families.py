"""Figures of families of runs by rank or batch size: gain, mean and best run, arms."""

from __future__ import annotations

from typing import Any

from rankrl.report.axis_values import axis_title
from rankrl.report.figures.canvas import (
    COLOURS,
    FEW_ARMS,
    INK,
    MOST_PANELS,
    Canvas,
    legend_below,
    log2_axis,
    n_text,
    outer,
    panels,
    thinned,
    zero_line,
)  # fmt: skip
from rankrl.report.figures.series import (
    BESIDE,
    GAIN,
    Names,
    Row,
    Span,
    bars,
    dots,
    fates,
    fit,
    gain,
    known,
    lines,
    mark,
    scored,
    signal,
    window,
)  # fmt: skip


def gain_by_rank(results: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: gain over the base against rank; a dot per run, mean and 95 % interval.

    More than FEW_ARMS arms get a panel each, because dots would hide them in one panel. None
    without a score.
    """
    families = known(families)
    arms = sorted({row["arm"] for row in families})
    if not arms:
        return None
    groups = [arms] if len(arms) <= FEW_ARMS else [[arm] for arm in arms]
    several, names, span = len(groups) > 1, fates(results), _span(results, families)
    canvas, grid = panels(len(groups), *((3.2, 2.3) if several else (6.6, 3.7)), sharex=True, sharey=True)
    for axes, group in zip(grid.flat, groups, strict=False):
        runs, rows = ([row for row in table if row["arm"] in group] for table in (results, families))
        if several:
            axes.set_title(f"{group[0]} ({n_text((row['n_seeds'] for row in rows), 'per rank')})")
        dots(axes, runs, "rank", gain, names, "run" if several else "")
        lines(axes, rows, "rank", signal, span, "mean, 95 % interval" if several else "")
        zero_line(axes)
        fit(axes, span, bool(names))
        log2_axis(axes, {row["rank"] for row in families})
    outer(grid, len(groups), "LoRA rank", GAIN)
    legend_below(canvas, *grid.flat, columns=4 if several else 2)
    return canvas


def _span(results: list[Row], families: list[Row]) -> Span:
    values = [*map(gain, filter(scored, results)), *(row["mean_gain"] for row in families)]
    return window(values, [row["pooled_ci95"] for row in families])


def batch_families(results: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: gain and training tokens by batch size; None with fewer than two batch sizes."""
    families = known(families)
    sizes = sorted({row["batch_size"] for row in families})
    if len(sizes) < 2:
        return None
    canvas, grid = panels(2, 4.4, 3.4)
    left, right = grid.flat
    shown = results if len({row["arm"] for row in families}) <= FEW_ARMS else []
    span, names, most = _span(shown, families), fates(shown), max(row["mean_tokens"] for row in families) / 1e6
    dots(left, shown, "batch_size", gain, names)
    lines(left, families, "batch_size", signal, span)
    lines(right, families, "batch_size", lambda row: (row["mean_tokens"] / 1e6, None), (0.0, most))
    zero_line(left)
    fit(left, span, bool(names))
    left.set_ylabel(GAIN)
    right.set_ylabel("training tokens per run (million)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        log2_axis(axes, sizes, "batch size (prompts per PPO step)")
    legend_below(canvas, left, columns=2)
    return canvas


def mean_and_best(results: list[Row], cells: list[Row], families: list[Row]) -> Canvas | None:
    """Figure: mean and best run by rank, every run, and where luck alone puts the best.

    That range is the 95 % range of the best of n normal values (`upside_null`). One panel per arm
    and batch size; per arm if these would be more than nine. None if every row has one run.
    """
    keys: tuple[str, ...] = ("arm", "batch_size")
    groups = panel_groups(known(cells), keys)
    if len(groups) > 9:
        keys = ("arm",)
        groups = panel_groups(known(families), keys)
    if all(row["n_seeds"] < 2 for rows in groups.values() for row in rows):
        return None
    several, names, runs = len(groups) > 1, fates(results), panel_groups(results, keys)
    canvas, grid = panels(
        len(groups), *((3.4, 2.1) if several else (6.6, 3.0)), 2 if len(groups) == 4 else 3, sharex=True, sharey=True
    )
    for axes, (name, rows) in zip(grid.flat, groups.items(), strict=False):
        axes.set_title(f"{name}{', ' if name else ''}{n_text((row['n_seeds'] for row in rows), 'runs per rank')}")
        _gaps(axes, rows, runs[name], names)
        zero_line(axes)
        log2_axis(axes, {run["rank"] for run in results})
    fit(grid.flat[0], axes_span(grid.flat[: len(groups)]), bool(names))
    outer(grid, len(groups), "LoRA rank", GAIN)
    legend_below(canvas, *grid.flat, columns=4)
    return canvas


def axes_span(panels: Any) -> Span:
    """The span of what panels show, with 0: the range of their data limits."""
    low, high = (f(axes.dataLim.intervaly[i] for axes in panels) for i, f in ((0, min), (1, max)))
    return min(low, 0.0), max(high, 0.0)


def panel_groups(rows: list[Row], keys: tuple[str, ...]) -> dict[str, list[Row]]:
    """Title of a panel -> its rows, grouped by `keys` (arm, batch_size)."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    words = {"arm": "{}", "batch_size": "batch {}"}
    return {
        ", ".join(words[k].format(v) for k, v in zip(keys, at, strict=True) if v != ""): groups[at]
        for at in sorted(groups)
    }


def _gaps(axes: Any, rows: list[Row], runs: list[Row], names: Names) -> None:
    ranks, means = [row["rank"] for row in rows], [row["mean_gain"] for row in rows]
    lucky = [row for row in rows if row.get("upside_null95") and row["sd_gain"]]
    low, high = ([row["mean_gain"] + row["sd_gain"] * row["upside_null95"][end] for row in lucky] for end in (0, 1))
    if lucky:
        label = "best by luck alone, 95 % range"
        axes.vlines([row["rank"] for row in lucky], low, high, color=INK, alpha=0.18, lw=9, label=label)
    best = [row["best_gain"] for row in rows]
    ours = thinned([run for run in runs if scored(run)])
    x = [run["rank"] * BESIDE for run in ours]
    axes.scatter(x, [*map(gain, ours)], s=10, alpha=0.6, color=COLOURS[0], linewidths=0, label="run")
    axes.vlines(ranks, means, best, color=COLOURS[0], lw=1.6, label="gap")
    axes.scatter(ranks, means, s=34, color=COLOURS[0], marker="o", zorder=3, label="mean")
    axes.scatter(ranks, best, s=34, color=COLOURS[1], marker="^", zorder=3, label="best run")
    mark(axes, runs, lambda run: run["rank"] * BESIDE, gain, names)


def difference_by_arm(rows: list[Row]) -> Canvas | None:
    """Figure: paired difference in gain to the reference arm; one panel per rank and batch size.

    At most MOST_PANELS of these. Each arm is one row of a panel, or each arm and reference where
    there are several of these. None without rows.
    """
    rows = _by_reference(known(rows, "mean_difference"))
    cells = thinned(sorted({(row["rank"], row["batch_size"]) for row in rows}), MOST_PANELS)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if not rows:
        return None
    wide = min(len(cells), 3)
    canvas, grid = panels(len(cells), 2.5 + 1.2 / wide, 0.34 * len(arms) + 0.9, columns=3, sharex=True, sharey=True)
    values = [value for row in rows for value in (*row["differences"], row["mean_difference"])]
    span = window(values, [row.get(key) for row in rows for key in ("difference_ci95", "family_ci95")])
    for axes, cell in zip(grid.flat, cells, strict=False):
        for row in rows:
            if (row["rank"], row["batch_size"]) == cell:
                _difference(axes, row, len(arms) - arms.index(row["arm"]), span)
        axes.axvline(0, color=INK, lw=0.8, ls="--", alpha=0.5, zorder=0)
        axes.set_title(f"rank {cell[0]}, batch {cell[1]}")
    grid[0][0].set_yticks(range(len(arms), 0, -1), arms)
    grid[0][0].set_ylim(0.4, len(arms) + 0.7)
    outer(grid, len(cells), "difference in gain\n(fraction correct)")
    legend_below(canvas, *grid.flat, title=n_text((row["n_pairs"] for row in rows), "pairs of one seed"))
    return canvas


def _by_reference(rows: list[Row]) -> list[Row]:
    """Rows whose arm also says what it differs in from its reference, if arms have several."""
    if len({(row["arm"], row["rank"], row["batch_size"]) for row in rows}) == len(rows):
        return rows
    return [row | {"arm": f"{row['arm']} by {axis_title(row['along'])}"} for row in rows]


def _difference(axes: Any, row: Row, y: int, span: Span) -> None:
    """Draws one row at height y: pairs, mean, its own 95 % interval (thick), family-wise (thin)."""
    dots = thinned(row["differences"], 100)
    axes.scatter(dots, [y + 0.22] * len(dots), s=18, alpha=0.6, color=COLOURS[1], linewidths=0, label="pair")
    wide = {"lw": 0.8, "capsize": 0, "label": "interval for all at once"}
    own = {"lw": 1.8, "capsize": 3, "label": "mean, 95 % interval"}
    for key, look in (("family_ci95", wide), ("difference_ci95", own)):
        if row.get(key) or look is own:
            point = row["mean_difference"], row.get(key)
            bars(axes, [y], [point], span, flat=True, color=COLOURS[0], marker="o", ms=5, **look)
