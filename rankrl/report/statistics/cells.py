"""Run records -> statistics of cells, rank families, batch families and arms.

Scores and gains are fractions; sd has ddof 1; gain intervals are Student t, risk intervals
Clopper-Pearson, both 95 %. A diverged run is an outcome: it counts as negative. If its gain was
not measured, the gain is taken as the loss of the whole base score. Failed runs are missing data
and do not come here.

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


def outcome_gain(result: Result) -> float:
    """Gain of a run; if none was measured, minus the base score (as for a final score of 0)."""
    return result["gain"] if result["gain"] is not None else -(result["base_score"] or 0.0)


def negative(result: Result) -> bool:
    """Whether a run counts as negative: it diverged, or has a gain below 0."""
    return result["status"] != "finished" or outcome_gain(result) < 0


def by_key(results: list[Result], keys: tuple[str, ...]) -> dict[tuple, list[Result]]:
    """Results grouped by their values of `keys`, the groups in ascending order of these values."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for result in results:
        groups[tuple(result[key] for key in keys)].append(result)
    return {values: groups[values] for values in sorted(groups)}


def seed_means(results: list[Result]) -> list[float]:
    """One value per seed: the mean deviation of its runs plus the mean of the cell means.

    The deviation of a run is its gain minus its cell's mean gain. With a single cell, the values
    are the gains themselves.
    """
    cells = {cell: [outcome_gain(r) for r in runs] for cell, runs in by_key(results, CELL).items()}
    means = {cell: sum(gains) / len(gains) for cell, gains in cells.items()}
    level = sum(means.values()) / len(means)
    seeds = by_key(results, ("seed",)).values()
    return [level + sum(outcome_gain(r) - means[tuple(r[k] for k in CELL)] for r in runs) / len(runs) for runs in seeds]


def summarise(results: list[Result]) -> dict[str, Any]:
    """Statistics of the runs of one cell or one family, as in a row of summary.json."""
    gains = [outcome_gain(result) for result in results]
    n, mean, best = len(gains), sum(gains) / len(gains), max(gains)
    sd = float(np.std(gains, ddof=1)) if n > 1 else None
    bad = sum(map(negative, results))
    mean_tokens = sum(result["tokens_total"] for result in results) / n
    null = upside_null(n) if n < 1000 else None
    return {
        "n_seeds": n,
        "mean_gain": mean,
        "sd_gain": sd,
        "gain_ci95": t_interval(gains),
        "best_gain": best,
        "mean_best_gap": best - mean,
        "upside_index": (best - mean) / sd if sd else None,
        "negative_runs": bad,
        "negative_gain_risk": bad / n,
        "risk_ci95": clopper_pearson(bad, n),
        "mean_final_score": sum(result["final_score"] or 0.0 for result in results) / n,
        "mean_tokens": mean_tokens,
        "token_efficiency": mean / (mean_tokens / 1e6) if mean_tokens else None,
        "upside_null95": list(null) if null else None,
        "iqm": iqm(gains),
        "diverged_runs": sum(result["status"] == "diverged" for result in results),
        **_blocked(results),
    }


def _blocked(results: list[Result]) -> dict[str, Any]:
    """Statistics clustered by seed: the seed, not the run, is the independent unit."""
    seeds = list(by_key(results, ("seed",)).values())
    shares = [sum(map(negative, runs)) / len(runs) for runs in seeds]
    return {
        "n_blocks": len(seeds),
        "blocked_ci95": t_interval(seed_means(results)),
        "blocked_risk_ci95": clopper_pearson(sum(shares), len(seeds)),
        "iqm_ci95": iqm_interval([[outcome_gain(r) for r in runs] for runs in seeds]),
    }


def grouped(results: list[Result], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row of statistics per combination of values of `keys`, in ascending order."""
    groups = by_key(results, keys)
    fewest = min(map(len, groups.values()))
    rows = [dict(zip(keys, values, strict=True)) | summarise(runs) for values, runs in groups.items()]
    for row, runs in zip(rows, groups.values(), strict=True):
        gains = [outcome_gain(result) for result in runs]
        row["expected_max"] = {str(k): expected_max(gains, k) for k in sorted({min(3, fewest), fewest})}
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
        row["marginal_efficiency"] = (
            (row["mean_gain"] - cheapest["mean_gain"]) / more if more > cheapest["mean_tokens"] / 1e8 else None
        )


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
