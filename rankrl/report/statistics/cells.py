"""Run records -> statistics of cells, rank families, batch families and arms.

Scores and gains are fractions; sd has ddof 1; gain intervals are Student t, risk intervals
Clopper-Pearson, both 95 %. A diverged run is an outcome: it counts as negative. Gains are those of
the runs that ended with a score: one that diverged without has none, and none is made up. Failed
runs are missing data and do not come here. A mean over several cells counts each cell alike,
whatever the number of its runs, and so do its intervals.

Runs of one seed share prompts and initial adapters. A family (such as all cells of one rank)
therefore has as many independent units as it has seeds, not as it has runs. `blocked_ci95` and
`blocked_risk_ci95` are clustered by seed; `gain_ci95` and `risk_ci95` treat every run as
independent.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from rankrl.recipe.rank_table import WEIGHT_BYTES
from rankrl.report.statistics.intervals import clopper_pearson, expected_max, iqm, iqm_interval, t_interval, upside_null

ADAM_BYTES = 8  # two fp32 moments per parameter
Result = dict[str, Any]
CELL = ("arm", "rank", "batch_size")
BEST_OF = (2, 3, 6)
"""Numbers of runs whose expected best is given."""


def with_gain(results: list[Result]) -> list[Result]:
    """The runs that ended with a score."""
    return [result for result in results if result["gain"] is not None]


def negative(result: Result) -> bool:
    """Whether a run counts as negative: it diverged, or has a gain below 0."""
    return result["status"] != "finished" or result["gain"] is None or result["gain"] < 0


def by_key(results: list[Result], keys: tuple[str, ...]) -> dict[tuple, list[Result]]:
    """Results grouped by their values of `keys`, the groups in ascending order of these values."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for result in results:
        groups[tuple(result[key] for key in keys)].append(result)
    return {values: groups[values] for values in sorted(groups)}


def cell_weights(results: list[Result]) -> np.ndarray:
    """Weights of runs that sum to 1, with which every cell counts alike."""
    counts = {cell: len(runs) for cell, runs in by_key(results, CELL).items()}
    return np.array([1 / counts[tuple(run[key] for key in CELL)] for run in results]) / max(1, len(counts))


def seed_means(results: list[Result]) -> list[float]:
    """One value per seed: the mean of the cell means plus the mean deviation of the seed's runs.

    The deviation of a run is its gain minus its cell's mean gain. With a single cell, the values
    are the gains themselves. `results`: runs with a gain.
    """
    cells = {cell: [run["gain"] for run in runs] for cell, runs in by_key(results, CELL).items()}
    means = {cell: sum(gains) / len(gains) for cell, gains in cells.items()}
    level = sum(means.values()) / len(means)
    seeds = by_key(results, ("seed",)).values()
    return [level + sum(run["gain"] - means[tuple(run[k] for k in CELL)] for run in runs) / len(runs) for runs in seeds]


def summarise(results: list[Result]) -> dict[str, Any]:
    """Statistics of the runs of one cell or one family, as in a row of summary.json."""
    n, bad = len(results), sum(map(negative, results))
    tokens = float(cell_weights(results) @ np.array([result["tokens_total"] for result in results], dtype=float))
    diverged = sum(result["status"] == "diverged" for result in results)
    gains = _gains(with_gain(results))
    return {
        "n_seeds": n,
        **gains,
        "negative_runs": bad,
        "negative_gain_risk": bad / n,
        "risk_ci95": clopper_pearson(bad, n),
        "mean_tokens": tokens,
        "token_efficiency": gains["mean_gain"] / (tokens / 1e6) if tokens and gains["mean_gain"] is not None else None,
        "trainable_params": sum(result["trainable_params"] for result in results) / n,
        "diverged_runs": diverged,
        "diverged_share": diverged / n,
        "diverged_ci95": clopper_pearson(diverged, n),
        **_blocked_risk(results),
    }


def _gains(results: list[Result]) -> dict[str, Any]:
    """Statistics of gains; None for each where no run has one."""
    if not results:
        return dict.fromkeys(GAINS) | {"ended_runs": 0}
    x, weights = np.array([result["gain"] for result in results]), cell_weights(results)
    n, mean, best = len(x), float(weights @ x), float(x.max())
    sd = float(np.std(x, ddof=1)) if n > 1 else None
    null = upside_null(n) if n < 1000 else None
    by_seed = by_key(results, ("seed",)).values()
    found = {
        "mean_gain": mean,
        "sd_gain": sd,
        "gain_ci95": t_interval(x, weights=weights),
        "best_gain": best,
        "mean_best_gap": best - mean,
        "upside_index": (best - mean) / sd if sd else None,
        "upside_null95": list(null) if null else None,
        "mean_final_score": float(weights @ np.array([result["final_score"] for result in results])),
        "iqm": iqm(x),
        "blocked_ci95": around(mean, t_interval(seed_means(results))),
        "iqm_ci95": iqm_interval([[result["gain"] for result in runs] for runs in by_seed]),
    }
    return found | {"ended_runs": n}


GAINS = [
    "mean_gain",
    "sd_gain",
    "gain_ci95",
    "best_gain",
    "mean_best_gap",
    "upside_index",
    "upside_null95",
    "mean_final_score",
    "iqm",
    "blocked_ci95",
    "iqm_ci95",
]
"""Keys of a row that only runs with a gain have."""


def around(mean: float, ends: list[float] | None) -> list[float] | None:
    """An interval moved to `mean`: in an unbalanced family, seeds do not weigh as cells do."""
    return None if ends is None else [mean + side * (ends[1] - ends[0]) / 2 for side in (-1, 1)]


def _blocked_risk(results: list[Result]) -> dict[str, Any]:
    """The risk clustered by seed: the seed, not the run, is the independent unit."""
    seeds = list(by_key(results, ("seed",)).values())
    shares = [sum(map(negative, runs)) / len(runs) for runs in seeds]
    return {"n_blocks": len(seeds), "blocked_risk_ci95": clopper_pearson(sum(shares), len(seeds))}


def grouped(results: list[Result], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row of statistics per combination of values of `keys`, in ascending order."""
    groups = by_key(results, keys)
    rows = [dict(zip(keys, values, strict=True)) | summarise(runs) for values, runs in groups.items()]
    for row, runs in zip(rows, groups.values(), strict=True):
        gains = [result["gain"] for result in with_gain(runs)]
        row["expected_max"] = {str(k): expected_max(gains, k) for k in BEST_OF if k <= len(gains)}
    within = tuple(key for key in keys if key not in ("batch_size", keys[-1]))
    for family in by_key(rows, within).values():
        _add_marginal(family)
    return rows


def _add_marginal(rows: list[dict[str, Any]]) -> None:
    """Adds `marginal_efficiency`: extra gain over the cheapest row per million extra tokens.

    None for a row that costs at most 1 % more tokens than the cheapest one.
    """
    cheapest = min(rows, key=lambda row: row["mean_tokens"])
    for row in rows:
        more = (row["mean_tokens"] - cheapest["mean_tokens"]) / 1e6
        known = None not in (row["mean_gain"], cheapest["mean_gain"]) and more > cheapest["mean_tokens"] / 1e8
        row["marginal_efficiency"] = (row["mean_gain"] - cheapest["mean_gain"]) / more if known else None


def footprint(results: list[Result]) -> list[dict[str, Any]]:
    """Trainable parameters of the adapter and its bytes, one row per rank in ascending order."""
    by_rank = {result["rank"]: result for result in results}
    return [size_of(rank, by_rank[rank]["trainable_params"], by_rank[rank]["base_params"]) for rank in sorted(by_rank)]


def size_of(rank: int, trainable_params: int, base_params: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "trainable_params": trainable_params,
        "fraction_of_base": trainable_params / base_params,
        "checkpoint_bytes": trainable_params * WEIGHT_BYTES,
        "optimizer_bytes": trainable_params * ADAM_BYTES,
    }


def summary(results: list[Result]) -> dict[str, Any]:
    """Statistics of the cells, ranks, batch sizes and arms, and the adapter footprint by rank."""
    return {
        "cells": grouped(results, CELL),
        "ranks": grouped(results, ("arm", "rank")),
        "batches": grouped(results, ("arm", "batch_size")),
        "arms": grouped(results, ("arm",)),
        "footprint": footprint(results),
    }
