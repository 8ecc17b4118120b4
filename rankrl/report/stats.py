"""Run records -> statistics of cells, rank families and batch families.

Scores and gains are fractions; sd has ddof 1; gain intervals are Student t, risk intervals Clopper-Pearson, both 95 %. A failed or
diverged run is an outcome: it counts as negative, and its gain, where none was measured, as the loss of the whole base score.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import pandas as pd
from scipy import stats

from rankrl.adapter.table import WEIGHT_BYTES

ADAM_BYTES = 8  # two fp32 moments per parameter


def t_interval(gains: list[float]) -> list[float] | None:
    """95 % interval of the mean; None with fewer than two runs."""
    if len(gains) < 2:
        return None
    mean, error = sum(gains) / len(gains), pd.Series(gains).std(ddof=1) / sqrt(len(gains))
    half = float(stats.t.ppf(0.975, len(gains) - 1) * error)
    return [mean - half, mean + half]


def clopper_pearson(events: int, n: int) -> list[float]:
    """Exact 95 % interval of a proportion."""
    interval = stats.binomtest(events, n).proportion_ci(0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def outcome_gain(result: dict[str, Any]) -> float:
    """The gain of a run; without one, a score of 0 is assumed."""
    return result["gain"] if result["gain"] is not None else -(result["base_score"] or 0.0)


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of the runs of one cell or family."""
    gains = [outcome_gain(result) for result in results]
    n, mean, best = len(gains), sum(gains) / len(gains), max(gains)
    sd = float(pd.Series(gains).std(ddof=1)) if n > 1 else None
    negative = sum(result["status"] != "finished" or gain < 0 for result, gain in zip(results, gains, strict=True))
    mean_tokens = sum(result["tokens_total"] for result in results) / n
    return {
        "n_seeds": n,
        "mean_gain": mean,
        "sd_gain": sd,
        "gain_ci95": t_interval(gains),
        "best_gain": best,
        "mean_best_gap": best - mean,
        "upside_index": (best - mean) / sd if sd else None,
        "negative_runs": negative,
        "negative_gain_risk": negative / n,
        "risk_ci95": clopper_pearson(negative, n),
        "mean_final_score": sum(result["final_score"] or 0.0 for result in results) / n,
        "mean_tokens": mean_tokens,
        "token_efficiency": mean / (mean_tokens / 1e6) if mean_tokens else None,
    }


def grouped(results: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row of statistics per value of `keys`, in ascending order."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return [dict(zip(keys, values, strict=True)) | summarise(groups[values]) for values in sorted(groups)]


def footprint(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainable parameters and bytes by rank."""
    by_rank = {result["rank"]: result for result in results}
    return [
        {
            "rank": rank,
            "trainable_params": by_rank[rank]["trainable_params"],
            "fraction_of_base": by_rank[rank]["trainable_params"] / by_rank[rank]["base_params"],
            "checkpoint_bytes": by_rank[rank]["trainable_params"] * WEIGHT_BYTES,
            "optimizer_bytes": by_rank[rank]["trainable_params"] * ADAM_BYTES,
        }
        for rank in sorted(by_rank)
    ]


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "cells": grouped(results, ("arm", "rank", "batch_size")),
        "ranks": grouped(results, ("arm", "rank")),
        "batches": grouped(results, ("arm", "batch_size")),
        "footprint": footprint(results),
    }
