"""Families of paired differences: Holm's p values, simultaneous intervals and verdicts.

The family-wise intervals are Bonferroni's (t at level 1 - 0.05/m for m rows), so that all of them
hold at once in 95 % of sweeps, whatever the correlation. A verdict is taken from these intervals
alone; p_holm (Holm 1979) tests the same with a little more power.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from scipy import special

from rankrl.report.statistics.blocks import Blocks
from rankrl.report.statistics.intervals import bonferroni, bounded

Row = dict[str, Any]


def difference(table: Blocks, i: int, j: int) -> Row:
    """Mean difference of two subjects of a table with its 95 % t interval and two-sided p.

    The interval and p are None where the standard error is not known: one seed, or all alike.
    """
    mean, error, freedom = (float(found[i, j]) for found in (table.difference_GG, table.error_GG, table.freedom_GG))
    known = isfinite(error)
    half = bonferroni(1)(freedom) * error
    return {
        "n_pairs": int(table.pairs_GGB[i, j].sum()),
        "n_blocks": int(table.common_GG[i, j]),
        "mean_difference": mean,
        "standard_error": error if known else None,
        "freedom": freedom if known else None,
        "difference_ci95": bounded(mean - half, mean + half) if known else None,
        "p": 2 * float(special.stdtr(freedom, -abs(mean / error))) if known else None,
    }


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
        row.update(p_holm=p, family_ci95=ends, verdict=verdict(ends))
    return rows


def verdict(ends: list[float] | None) -> str:
    """higher, lower or inconclusive, by the interval of a difference."""
    return "inconclusive" if not ends or ends[0] <= 0 <= ends[1] else "higher" if ends[0] > 0 else "lower"


def family_interval(row: Row, m: int) -> list[float] | None:
    """The interval of a difference that holds jointly with m - 1 others (Bonferroni); or None."""
    if row["standard_error"] is None:
        return None
    half = bonferroni(m)(row["freedom"]) * row["standard_error"]
    return bounded(row["mean_difference"] - half, row["mean_difference"] + half)
