"""Runs that a fixed time budget buys at each rank, and adapter sizes at the shipped scales."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from scipy import optimize

from rankrl.report.statistics.cells import CELL, Result, by_key, size_of, with_gain
from rankrl.report.statistics.intervals import t_quantile

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHORTEST_S = 1e-3
"""Runs with a shorter `wall_s` are left out: their time was not measured."""
LARGE_SCALES = ("qwen3-8b", "qwen3-30b-a3b", "qwen3-235b-a22b")


def linear_cost(params: list[float], seconds: list[float]) -> tuple[float, float]:
    """Least-squares fit of seconds = c0 + c1 x parameters, with c0 and c1 not below 0.

    Returns (c0 in seconds, c1 in seconds per parameter).
    """
    unit = max(*params, 1.0)
    table = np.column_stack([np.ones(len(params)), np.array(params) / unit])
    (c0, c1), _ = optimize.nnls(table, np.array(seconds, dtype=float))
    return float(c0), float(c1 / unit)


def half_width(sd: float | None, n: int) -> float | None:
    """Half-width of the 95 % t interval of the mean of `n` runs; None without `sd` or if n < 2."""
    return None if sd is None or n < 2 else t_quantile(0.975, n - 1) * sd / sqrt(n)


def budget(results: list[Result]) -> list[dict[str, Any]]:
    """Seed-runs that the budget buys, and the half-width of the 95 % interval of their mean gain.

    One row per arm, rank and cost model. The budget is the total time of the runs of the most
    expensive arm and rank. A run costs its mean measured time ("measured"), or what a line fitted
    to all runs gives ("linear"). Times are wall-clock seconds as measured: other runs may have
    shared the machine, and machines may differ.
    """
    families = by_key([result for result in results if result["wall_s"] > SHORTEST_S], ("arm", "rank"))
    if not families:
        return []
    whole = max(sum(run["wall_s"] for run in runs) for runs in families.values())
    runs = [run for members in families.values() for run in members]
    c0, c1 = linear_cost([run["trainable_params"] for run in runs], [run["wall_s"] for run in runs])
    rows = []
    for (arm, rank), members in families.items():
        n = len(members)
        mean_s, params = sum(r["wall_s"] for r in members) / n, sum(r["trainable_params"] for r in members) / n
        models = {
            "measured": ("mean measured seconds of a run at this rank", mean_s),
            "linear": (f"{c0:.4g} s + {c1:.3g} s x parameters, fitted to all runs", c0 + c1 * params),
        }
        for model, (says, cost_s) in models.items():
            bought = int(whole / cost_s + 1e-9)
            rows.append(
                {"arm": arm, "rank": rank, "model": model, "cost_model": says, "budget_s": whole}
                | {"cost_per_run": cost_s, "seed_runs": bought, "ci_halfwidth": half_width(_cell_sd(members), bought)}
            )
    return rows


def _cell_sd(results: list[Result]) -> float | None:
    """sd of gains between the seeds of a cell, pooled over cells; None if no cell has two runs."""
    cells = [[run["gain"] for run in runs] for runs in by_key(with_gain(results), CELL).values()]
    freedom = sum(len(cell) - 1 for cell in cells)
    return sqrt(sum(float(np.var(cell)) * len(cell) for cell in cells) / freedom) if freedom else None


def scale_footprint(scale: str, ranks: tuple[int, ...] = RANKS) -> list[dict[str, Any]]:
    """Adapter size at each of the `ranks` that the scale allows, all modules adapted.

    Raises ValueError for an unknown scale.
    """
    from rankrl.recipe.load import load_scale
    from rankrl.recipe.plan import adapter_params, largest_rank

    shapes = load_scale(scale)
    allowed = [rank for rank in ranks if rank <= largest_rank(shapes)]
    return [
        {"scale": scale, **size_of(rank, adapter_params(shapes, rank), shapes.model.base_params)} for rank in allowed
    ]
