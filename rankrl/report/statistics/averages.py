"""Whether an average of the last adapters gains more than the last one, and fails less often."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from scipy.stats import binomtest

from rankrl.report.statistics.family import Row
from rankrl.report.statistics.intervals import t_interval

LEVEL = 0.95


def averages(results: list[dict[str, Any]]) -> list[Row]:
    """A row for each arm and rank with averaged adapters: what they change in score and risk.

    mean_difference: mean of averaged minus last score over the runs, every seed alike, with a t
    interval over seeds. A run that diverged has no average and is below the base with either.
    lower_risk_p: one-sided exact sign test on the seeds of which one kind of adapter is below the
    base in more runs than the other; None where there are none. Intervals and `lowers_risk` hold
    for all rows at once (Bonferroni).
    """
    cells: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in results:
        cells[run["arm"], run["rank"]].append(run)
    kept = {cell: runs for cell, runs in cells.items() if any(_both(run) for run in runs)}
    error = (1 - LEVEL) / max(len(kept), 1)
    return [_row(arm, rank, runs, error) for (arm, rank), runs in kept.items()]


def _both(run: dict[str, Any]) -> bool:
    return run.get("average_score") is not None and run["gain"] is not None


def _row(arm: str, rank: int, runs: list[dict[str, Any]], error: float) -> Row:
    ended, diverged = [run for run in runs if _both(run)], sum(run["status"] == "diverged" for run in runs)
    by_seed: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in ended:
        by_seed[run["seed"]].append((run["gain"], run["average_score"] - run["base_score"]))
    pairs = [pair for seed in by_seed.values() for pair in seed]
    means = [sum(average - last for last, average in seed) / len(seed) for seed in by_seed.values()]
    fewer = [sum((last < 0) - (average < 0) for last, average in seed) for seed in by_seed.values()]
    helped, moved = sum(n > 0 for n in fewer), sum(n != 0 for n in fewer)
    p = float(binomtest(helped, moved, alternative="greater").pvalue) if moved else None
    return {
        "arm": arm,
        "rank": rank,
        "n_runs": len(pairs),
        "n_seeds": len(means),
        "diverged_runs": diverged,
        "mean_gain": sum(last for last, _ in pairs) / len(pairs),
        "average_mean_gain": sum(average for _, average in pairs) / len(pairs),
        "mean_difference": sum(means) / len(means),
        "difference_ci95": t_interval(means, 1 - error) if len(means) > 1 and len({*means}) > 1 else None,
        "negative_runs": diverged + sum(last < 0 for last, _ in pairs),
        "average_negative_runs": diverged + sum(average < 0 for _, average in pairs),
        "lower_risk_p": p,
        "lowers_risk": p is not None and p <= error,
    }
