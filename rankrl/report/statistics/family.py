"""Paired differences and families of them: Holm's p values, simultaneous intervals and verdicts.

The seed is the independent unit: differences between runs of one seed are averaged over batch
sizes before an interval is made. The family-wise intervals are Bonferroni's (t at level 1 - 0.05/m
for m rows), so that all of them hold at once in 95 % of sweeps, whatever the correlation. A verdict
is taken from these intervals alone; p_holm (Holm 1979) tests the same with a little more power.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np
from scipy import special

from rankrl.report.statistics.intervals import EQUAL, LEVEL, t_interval, t_quantile

Row = dict[str, Any]


def paired(differences: list[tuple[int, float]]) -> Row:
    """Mean of paired differences with its 95 % t interval and two-sided p, clustered by seed.

    `differences`: (seed, difference) of every pair; those of one seed are averaged first.
    """
    blocks = seed_blocks(differences)
    return {
        "n_pairs": len(differences),
        "n_blocks": len(blocks),
        "mean_difference": sum(blocks) / len(blocks),
        "difference_ci95": t_interval(blocks),
        "p": t_test(blocks),
    }


def seed_blocks(differences: list[tuple[int, float]]) -> list[float]:
    """The mean difference of each seed."""
    seeds: dict[int, list[float]] = {}
    for seed, difference in differences:
        seeds.setdefault(seed, []).append(difference)
    return [sum(values) / len(values) for values in seeds.values()]


def t_test(values: list[float], above: float | None = None) -> float | None:
    """p of the one-sample t test: two-sided against 0, or one-sided for a mean above `above`.

    None with fewer than two values, or where all are equal.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or np.ptp(x) <= EQUAL:
        return None
    t = (x.mean() - (above or 0.0)) / (x.std(ddof=1) / sqrt(len(x)))
    tail = float(special.stdtr(len(x) - 1, -abs(t) if above is None else -t))
    return min(1.0, 2 * tail) if above is None else tail


def holm(ps: Iterable[float | None]) -> list[float | None]:
    """Holm's adjusted p values, in the given order.

    A missing p value stays None, but counts as 1 in the size of the family.
    """
    given = list(ps)
    order = sorted((i for i, p in enumerate(given) if p is not None), key=lambda i: given[i])  # type: ignore[arg-type,return-value]
    adjusted: list[float | None] = [None] * len(given)
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(given) - place) * given[i]))  # type: ignore[operator]
        adjusted[i] = highest
    return adjusted


def judge(rows: list[Row]) -> list[Row]:
    """Adds p_holm, family_ci95 and verdict to the rows of one family, and returns them.

    verdict: higher or lower if the family-wise interval excludes 0, else inconclusive.
    """
    for row, p in zip(rows, holm(row["p"] for row in rows), strict=True):
        ends = family_interval(row, len(rows))
        verdict = "inconclusive" if not ends or ends[0] <= 0 <= ends[1] else "higher" if ends[0] > 0 else "lower"
        row.update(p_holm=p, family_ci95=ends, verdict=verdict)
    return rows


def family_interval(row: Row, m: int) -> list[float] | None:
    """The row's own t interval, widened (Bonferroni) to hold jointly with m - 1 others; or None."""
    if row["difference_ci95"] is None:
        return None
    low, high = row["difference_ci95"]
    df, tail = row["n_blocks"] - 1, (1 - LEVEL) / 2
    half = (high - low) / 2 * t_quantile(1 - tail / m, df) / t_quantile(1 - tail, df)
    return [row["mean_difference"] - half, row["mean_difference"] + half]
