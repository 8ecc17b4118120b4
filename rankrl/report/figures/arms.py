"""Arms against the reference arm."""

from __future__ import annotations

from typing import Any

from rankrl.report.figures.canvas import COLOURS, INK, Canvas, legend_below, n_text, outer, panels, thinned

Row = dict[str, Any]


def difference_by_arm(rows: list[Row]) -> Canvas | None:
    """Paired difference of gains against the reference arm: a line per arm, a panel per rank and batch size."""
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
    """The interval drawn thick is the row's own; the thin one allows for all rows of the table."""
    labels = ("pair", "mean, 95 % interval", "interval for all at once") if not axes.has_data() else ("", "", "")
    dots = thinned(row["differences"], 100)
    axes.scatter(dots, [y + 0.22] * len(dots), s=18, alpha=0.6, color=COLOURS[1], linewidths=0, label=labels[0])
    mean = row["mean_difference"]
    for key, lw, cap, label in (("family_ci95", 0.8, 0, labels[2]), ("difference_ci95", 1.8, 3, labels[1])):
        ends = row.get(key)
        if ends or key == "difference_ci95":
            half = [[max(mean - ends[0], 0)], [max(ends[1] - mean, 0)]] if ends else None
            axes.errorbar([mean], [y], xerr=half, color=COLOURS[0], marker="o", ms=5, capsize=cap, lw=lw, label=label)
