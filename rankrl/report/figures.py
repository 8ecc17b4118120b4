"""The figures, one function each, as SVG and PNG. Every seed is a dot; n stands in every legend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from rankrl.adapter.allocate import layer_and_type
from rankrl.report.read import curves
from rankrl.report.stats import outcome_gain

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe-Ito
MARKERS = "osD^vP*"
FEW_ARMS = 3
"""As many as one panel holds."""
STYLE = {
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.hashsalt": "rankrl",
}


def _rank_axis(axes: Any, ranks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("LoRA rank")


def _save(figure: Any, to: Path, name: str) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    figure.savefig(to / f"{name}.png", dpi=150, bbox_inches="tight")
    figure.savefig(to / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return to / f"{name}.svg"


def _panels(n: int, width: float, height: float, **shared: Any) -> tuple[Any, Any]:
    """A figure of `n` panels, three in a row, and its grid."""
    columns = min(n, 3)
    lines = -(-n // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False, **shared)
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    return figure, grid


def gain_by_rank(results: list[dict[str, Any]], families: list[dict[str, Any]], to: Path) -> Path:
    """Gain over the base against rank: every run a dot, mean and 95 % t interval per arm and rank. Many arms get a panel each."""
    arms = sorted({row["arm"] for row in families})
    groups = [arms] if len(arms) <= FEW_ARMS else [[arm] for arm in arms]
    width, height = (6.4, 3.8) if len(groups) == 1 else (3.4, 2.6)
    with plt.rc_context(STYLE):
        figure, grid = _panels(len(groups), width, height, sharex=True, sharey=True)
        for axes, group in zip(grid.flat, groups, strict=False):
            for i, arm in enumerate(group):
                shift = 1 + 0.06 * (i - (len(group) - 1) / 2)
                runs, rows = ([row for row in table if row["arm"] == arm] for table in (results, families))
                _gains(axes, runs, rows, f"{arm}: " if arm and len(groups) == 1 else "", shift, i)
            axes.axhline(0, color="0.5", lw=0.8, ls="--")
            _rank_axis(axes, sorted({row["rank"] for row in families}))
            axes.legend(frameon=False, fontsize=8 if len(groups) == 1 else 7)
            axes.set_title(group[0] if len(groups) > 1 else "", fontsize=10)
            axes.label_outer()
        for axes in grid[:, 0]:
            axes.set_ylabel("gain over the base (score)")
        figure.tight_layout()
        return _save(figure, to, "gain_by_rank")


def _gains(axes: Any, runs: list[dict[str, Any]], rows: list[dict[str, Any]], name: str, shift: float, i: int) -> None:
    """The dots of one arm and its means."""
    colour, marker = COLOURS[i % 7], MARKERS[i % 7]
    axes.scatter(
        [run["rank"] * shift * 0.9 for run in runs],  # beside the mean, or it hides them
        [outcome_gain(run) for run in runs],
        s=22,
        alpha=0.6,
        color=colour,
        marker=marker,
        linewidths=0,
        label=f"{name}runs (n = {len(runs)})",
    )
    seeds = sorted({row["n_seeds"] for row in rows})
    n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
    axes.errorbar(
        [row["rank"] * shift for row in rows],
        [row["mean_gain"] for row in rows],
        yerr=[row["gain_ci95"][1] - row["mean_gain"] if row["gain_ci95"] else 0 for row in rows],
        color=colour,
        marker=marker,
        capsize=4,
        lw=1.5,
        label=f"{name}mean, 95 % interval ({n} runs per rank)",
    )


def learning_curves(sweep: Path, results: list[dict[str, Any]], to: Path) -> Path:
    """Training accuracy against PPO step, one panel per rank (per arm, if there are many): every run a thin line, their mean a
    thick one.
    """
    arms = {result["arm"] for result in results}
    panel, colour = ("rank", "arm") if len(arms) <= FEW_ARMS else ("arm", "rank")
    values = sorted({result[panel] for result in results})
    with plt.rc_context(STYLE):
        figure, grid = _panels(len(values), 2.8, 2.5, sharex=True, sharey=True)
        for axes, value in zip(grid.flat, values, strict=False):
            _curve_panel(axes, sweep, [result for result in results if result[panel] == value], colour)
            axes.set_title(f"rank {value}" if panel == "rank" else value, fontsize=10)
        for axes in grid[:, 0]:
            axes.set_ylabel("training accuracy")
        for axes in grid[-1]:
            axes.set_xlabel("PPO step")
        figure.tight_layout()
        return _save(figure, to, "learning_curves")


def _curve_panel(axes: Any, sweep: Path, results: list[dict[str, Any]], key: str) -> None:
    """A colour for each value of `key`."""
    for i, value in enumerate(sorted({result[key] for result in results})):
        runs = [result["run_id"] for result in results if result[key] == value]
        frame = pd.DataFrame(
            {run: {c["step"]: c["accuracy"] for c in curves(sweep / run)} for run in runs}
        ).sort_index()
        if frame.empty:
            continue
        name = f"rank {value}, " if key == "rank" else f"{value}, " if value else ""
        axes.plot(frame.index, frame.to_numpy(), color=COLOURS[i % 7], lw=0.7, alpha=0.35)
        axes.plot(frame.index, frame.mean(axis=1), color=COLOURS[i % 7], lw=2, label=f"{name}n = {len(runs)}")
    if axes.has_data():
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def difference_by_arm(rows: list[dict[str, Any]], to: Path) -> Path:
    """Paired difference of gains against the reference arm: a line per arm, a panel per rank and batch size."""
    cells = sorted({(row["rank"], row["batch_size"]) for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    with plt.rc_context(STYLE):
        size = (3.0 * len(cells) + 1.4, 0.34 * len(arms) + 1.3)
        figure, panels = plt.subplots(1, len(cells), figsize=size, sharex=True, sharey=True, squeeze=False)
        for axes, (rank, batch_size) in zip(panels[0], cells, strict=True):
            for row in rows:
                if (row["rank"], row["batch_size"]) == (rank, batch_size):
                    _difference(axes, row, len(arms) - arms.index(row["arm"]))
            axes.axvline(0, color="0.5", lw=0.8, ls="--")
            axes.set_title(f"rank {rank}, batch {batch_size}", fontsize=10)
            axes.set_xlabel("difference in gain")
        panels[0][0].set_yticks(range(len(arms), 0, -1), arms)
        panels[0][0].set_ylim(0.4, len(arms) + 0.7)
        pairs = sorted({row["n_pairs"] for row in rows})
        n = f"n = {pairs[0]}" if len(pairs) == 1 else f"n = {pairs[0]} to {pairs[-1]}"
        figure.legend(
            *panels[0][0].get_legend_handles_labels(),
            title=f"{n} pairs of one seed",
            title_fontsize=8,
            frameon=False,
            fontsize=8,
            loc="outside lower center",
            ncols=2,
        )
        figure.set_layout_engine("constrained")
        return _save(figure, to, "difference_by_arm")


def _difference(axes: Any, row: dict[str, Any], y: int) -> None:
    labels = ("pair", "mean, 95 % interval") if not axes.has_data() else ("", "")
    mean, interval = row["mean_difference"], row["difference_ci95"]
    axes.scatter(
        row["differences"],
        [y + 0.22] * row["n_pairs"],
        s=18,
        alpha=0.6,
        color=COLOURS[1],
        linewidths=0,
        label=labels[0],
    )
    half = [[mean - interval[0]], [interval[1] - mean]] if interval else None
    axes.errorbar([mean], [y], xerr=half, color=COLOURS[0], marker="o", ms=5, capsize=3, lw=1.5, label=labels[1])


def rank_map(content: dict[str, Any], to: Path) -> Path:
    """Layers x modules of an allocation.json, a module's LoRA rank in its cell."""
    title = f"LoRA rank by module: {content['method']}\n{content['spent']:,} of {content['budget']:,} parameters"
    return rank_maps({title: {row["module"]: row["rank"] for row in content["modules"]}}, to)


def rank_maps(maps: dict[str, dict[str, float]], to: Path) -> Path:
    """Layers x modules, the LoRA rank of a module in its cell; a panel for each title, at most three in a row."""
    places = [{layer_and_type(module): rank for module, rank in ranks.items()} for ranks in maps.values()]
    layers = sorted({layer for ranks in places for layer, _ in ranks})
    kinds = list(dict.fromkeys(kind for ranks in places for _, kind in ranks))
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(maps), 0.75 * len(kinds) + 0.6, 0.2 * len(layers) + 1.4)
        for axes, title, ranks in zip(panels.flat, maps, places, strict=False):
            grid = np.array([[ranks.get((layer, kind), 0) for kind in kinds] for layer in layers])
            _rank_grid(axes, grid)
            axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=30, ha="right")
            axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers], fontsize=8)
            axes.set_title(title, fontsize=9)
        for axes in panels[:, 0]:
            axes.set_ylabel("layer")
        figure.tight_layout()
        return _save(figure, to, "allocation")


def _rank_grid(axes: Any, grid: np.ndarray) -> None:
    axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=grid.max(), edgecolors="white", linewidth=1)
    for (y, x), rank in np.ndenumerate(grid):
        colour = "white" if rank > 0.6 * grid.max() else "0.2"
        axes.text(x + 0.5, y + 0.5, f"{rank:.3g}", ha="center", va="center", fontsize=7, color=colour)
    axes.tick_params(length=0)
