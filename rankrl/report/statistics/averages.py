"""Whether an average of the last adapters gains more than the last one, and fails less often."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from scipy.stats import binomtest

from rankrl.report.statistics.family import Row
from rankrl.report.statistics.intervals import t_interval

LEVEL = 0.95


def averages(results: list[dict[str, Any]]) -> list[Row]:
    """A row for each arm with averaged adapters: differences from the last ones, and both risks.

    mean_difference: mean of averaged minus last score over the runs, every seed alike, with a t
    interval over seeds. lower_risk_p: one-sided exact sign test on the runs of which one adapter is
    below the base and the other is not; None where there are none. Intervals and `lowers_risk` hold
    for all arms at once (Bonferroni).
    """
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in results:
        if run.get("average_score") is not None and run["gain"] is not None:
            by_arm[run["arm"]].append(run)
    error = (1 - LEVEL) / max(len(by_arm), 1)
    return [_row(arm, runs, error) for arm, runs in by_arm.items()]


def _row(arm: str, runs: list[dict[str, Any]], error: float) -> Row:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        by_seed[run["seed"]].append(run["average_score"] - run["final_score"])
    means = [sum(values) / len(values) for values in by_seed.values()]
    gains = [(run["gain"], run["average_score"] - run["base_score"]) for run in runs]
    helped = sum(last < 0 <= average for last, average in gains)
    hurt = sum(average < 0 <= last for last, average in gains)
    p = binomtest(helped, helped + hurt, alternative="greater").pvalue if helped + hurt else None
    return {
        "arm": arm,
        "n_runs": len(runs),
        "n_seeds": len(means),
        "mean_gain": sum(last for last, _ in gains) / len(gains),
        "average_mean_gain": sum(average for _, average in gains) / len(gains),
        "mean_difference": sum(means) / len(means),
        "difference_ci95": t_interval(means, 1 - error) if len(means) > 1 and len({*means}) > 1 else None,
        "negative_runs": sum(last < 0 for last, _ in gains),
        "average_negative_runs": sum(average < 0 for _, average in gains),
        "lower_risk_p": p,
        "lowers_risk": p is not None and p <= error,
    }
