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


def gain_by_rank(results: list[dict[str, Any]], families: list[dict[str, Any]], to: Path) -> Path:
    """Gain over the base against rank: every run a dot, mean and 95 % t interval per arm and rank."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        ranks = sorted({row["rank"] for row in families})
        arms = sorted({row["arm"] for row in families})
        for i, arm in enumerate(arms):
            shift = 1 + 0.06 * (i - (len(arms) - 1) / 2)
            runs = [result for result in results if result["arm"] == arm]
            axes.scatter(
                [r["rank"] * shift * 0.9 for r in runs],  # beside the mean, or it hides them
                [outcome_gain(r) for r in runs],
                s=22,
                alpha=0.6,
                color=COLOURS[i % 7],
                marker=MARKERS[i % 7],
                linewidths=0,
                label=f"{arm + ': ' if arm else ''}runs (n = {len(runs)})",
            )
            rows = [row for row in families if row["arm"] == arm]
            means = [row["mean_gain"] for row in rows]
            half = [row["gain_ci95"][1] - row["mean_gain"] if row["gain_ci95"] else 0 for row in rows]
            seeds = sorted({row["n_seeds"] for row in rows})
            n = f"n = {seeds[0]}" if len(seeds) == 1 else f"n = {seeds[0]} to {seeds[-1]}"
            axes.errorbar(
                [row["rank"] * shift for row in rows],
                means,
                yerr=half,
                color=COLOURS[i % 7],
                marker=MARKERS[i % 7],
                capsize=4,
                lw=1.5,
                label=f"{arm + ': ' if arm else ''}mean, 95 % interval ({n} runs per rank)",
            )
        axes.axhline(0, color="0.5", lw=0.8, ls="--")
        _rank_axis(axes, ranks)
        axes.set_ylabel("gain over the base (score)")
        axes.legend(frameon=False, fontsize=8)
        return _save(figure, to, "gain_by_rank")


def learning_curves(sweep: Path, results: list[dict[str, Any]], to: Path) -> Path:
    """Training accuracy against PPO step, one panel per rank: every run a thin line, their mean a thick one."""
    ranks = sorted({result["rank"] for result in results})
    with plt.rc_context(STYLE):
        columns = min(len(ranks), 3)
        rows = -(-len(ranks) // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.6 * columns + 0.8, 2.5 * rows), sharex=True, sharey=True, squeeze=False
        )
        for axes, rank in zip(grid.flat, ranks, strict=False):
            _rank_panel(axes, sweep, [result for result in results if result["rank"] == rank], rank)
        for axes in list(grid.flat)[len(ranks) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("training accuracy")
        for axes in grid[-1]:
            axes.set_xlabel("PPO step")
        figure.tight_layout()
        return _save(figure, to, "learning_curves")


def _rank_panel(axes: Any, sweep: Path, results: list[dict[str, Any]], rank: int) -> None:
    for i, arm in enumerate(sorted({result["arm"] for result in results})):
        lines = {
            r["run_id"]: {c["step"]: c["accuracy"] for c in curves(sweep / r["run_id"])}
            for r in results
            if r["arm"] == arm
        }
        frame = pd.DataFrame(lines).sort_index()
        if frame.empty:
            continue
        axes.plot(frame.index, frame.to_numpy(), color=COLOURS[i % 7], lw=0.7, alpha=0.35)
        axes.plot(
            frame.index,
            frame.mean(axis=1),
            color=COLOURS[i % 7],
            lw=2,
            label=f"{arm + ', ' if arm else ''}n = {len(lines)}",
        )
    axes.set_title(f"rank {rank}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def rank_map(content: dict[str, Any], to: Path) -> Path:
    """Layers x modules of an allocation.json, a module's LoRA rank in its cell."""
    ranks = {layer_and_type(row["module"]): row["rank"] for row in content["modules"]}
    layers, kinds = sorted({layer for layer, _ in ranks}), list(dict.fromkeys(kind for _, kind in ranks))
    grid = np.array([[ranks.get((layer, kind), 0) for kind in kinds] for layer in layers])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(0.75 * len(kinds) + 0.6, 0.2 * len(layers) + 1.4))
        axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=grid.max(), edgecolors="white", linewidth=1)
        for (y, x), rank in np.ndenumerate(grid):
            colour = "white" if rank > 0.6 * grid.max() else "0.2"
            axes.text(x + 0.5, y + 0.5, str(rank), ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=30, ha="right")
        axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers], fontsize=8)
        axes.tick_params(length=0)
        axes.set_ylabel("layer")
        axes.set_title(
            f"LoRA rank by module: {content['method']}\n{content['spent']:,} of {content['budget']:,} parameters",
            fontsize=9,
        )
        return _save(figure, to, "allocation")
