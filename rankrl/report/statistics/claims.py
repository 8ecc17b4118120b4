"""What the seeds of a sweep support: claims, each with an interval that holds for its whole kind.

| kind | claim | family-wise interval |
| --- | --- | --- |
| below | one subject's mean gain is below another's | Tukey's or Bonferroni's |
| above | the mean gain is above 0, the base's (`than` is null) | Student t, Bonferroni |
| noninferior | the mean is less than the margin below every other one | Hsu's, with the best |
| equivalent | the mean differs from the reference's by less than the margin | that of the pair |
| risk_below | the share of runs below the base is below the limit | Clopper-Pearson, one-sided |

A subject is an arm at a rank. Gains are those of runs that ended with a score. Where a run diverged
without one, they are the survivors', and no claim in the subject's favour is supported. Variances:
rankrl/report/statistics/blocks.py. Sources: Tukey 1953; Hsu 1984 (comparisons with the best: only
differences to whichever is truly best can be wrong, so G - 1 one-sided intervals hold at once).
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
from scipy import stats

from rankrl.report.statistics.blocks import Blocks, Subject, blocks
from rankrl.report.statistics.cells import Result, by_key, negative
from rankrl.report.statistics.intervals import EQUAL, LEVEL, risk_bound, t_quantile
from rankrl.report.statistics.limits import DEFAULT, Limits

ALPHA = 1 - LEVEL
Claim = dict[str, Any]


def claims(results: list[Result], limits: Limits = DEFAULT) -> list[Claim]:
    """All claims on the arms and ranks of a sweep, supported or not."""
    table = blocks(results)
    pairs = pair_claims(table)
    return [
        *pairs,
        *positive_claims(table),
        *noninferior_claims(table, limits.margin),
        *equivalent_claims(table, pairs, limits),
        *risk_claims(results, limits.risk),
    ]


def claim(
    kind: str, subject: Subject, than: Subject | None, estimate: float, ends: list[float], family: int, supported: bool
) -> Claim:
    return {
        "kind": kind,
        "subject": named(subject),
        "than": named(than) if than else None,
        "estimate": float(estimate),
        "ci95": [float(end) for end in ends],
        "family": family,
        "supported": bool(supported),
    }


def named(subject: Subject) -> dict[str, Any]:
    return {"arm": subject[0], "rank": subject[1]}


def of_kind(found: list[Claim], kind: str) -> list[Claim]:
    """The supported claims of a kind."""
    return [row for row in found if row["kind"] == kind and row["supported"]]


def best_set(found: list[Claim], subjects: list[dict[str, Any]]) -> dict[str, Any]:
    """Subjects that are, and that are not, shown to be below another one.

    In 95 % of sweeps all of `excluded` truly are below another one. No more is known of `members`
    than that nothing is shown of them: a noisy subject is a member for its noise alone.
    """
    below = [row["subject"] for row in of_kind(found, "below")]
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for subject in subjects:
        sides[subject in below].append(subject)
    return {"metric": "mean_gain", "level": LEVEL, "members": sides[False], "excluded": sides[True]}


def compared_pairs(table: Blocks) -> list[tuple[int, int]]:
    """Subjects of one arm or of one rank, whose difference has a standard error."""
    able = np.isfinite(table.error_GG) & np.isfinite(table.difference_GG)
    return [
        (i, j)
        for i, (arm, rank) in enumerate(table.subjects)
        for j, (other_arm, other_rank) in enumerate(table.subjects)
        if i < j and able[i, j] and (arm == other_arm or rank == other_rank)
    ]


@lru_cache(maxsize=256)
def pair_quantile(subjects: int, pairs: int, freedom: int) -> float:
    """Half-width, in standard errors, of intervals that hold for all pairs at once.

    Tukey's, or Bonferroni's where that is shorter, as where few of the pairs are compared.
    """
    tukey = float(stats.studentized_range.ppf(LEVEL, subjects, freedom)) / sqrt(2)
    return min(tukey, t_quantile(1 - ALPHA / 2 / pairs, freedom))


def pair_claims(table: Blocks) -> list[Claim]:
    """For each compared pair, that the one with the lower mean is below the other."""
    pairs = compared_pairs(table)
    if not pairs:
        return []
    quantile = pair_quantile(len(table.subjects), len(pairs), table.freedom)
    found = []
    for i, j in pairs:
        low, high = (i, j) if table.difference_GG[i, j] <= 0 else (j, i)
        difference, half = table.difference_GG[low, high], quantile * table.error_GG[low, high]
        ends = [max(difference - half, -1.0), min(difference + half, 1.0)]
        subjects = table.subjects[low], table.subjects[high]
        found.append(claim("below", *subjects, difference, ends, len(pairs), ends[1] < 0 and table.complete_G[high]))
    return found


def positive_claims(table: Blocks) -> list[Claim]:
    """That a subject's mean gain is above 0."""
    able = [g for g, n in enumerate(table.seeds_G) if n > 1 and np.nanstd(table.level_GS[g]) > EQUAL]
    found = []
    for g in able:
        n, mean = int(table.seeds_G[g]), float(np.nanmean(table.level_GS[g]))
        error = float(np.nanstd(table.level_GS[g], ddof=1)) / sqrt(n)
        half = t_quantile(1 - ALPHA / 2 / len(able), n - 1) * error
        ends = [max(mean - half, -1.0), min(mean + half, 1.0)]
        found.append(
            claim("above", table.subjects[g], None, mean, ends, len(able), ends[0] > 0 and table.complete_G[g])
        )
    return found


def noninferior_claims(table: Blocks, margin: float) -> list[Claim]:
    """That a subject's mean is less than `margin` below every other one's."""
    g = len(table.subjects)
    if g < 2 or table.freedom < 1 or not np.isfinite(table.variance_G).all() or not (table.common_GG > 0).all():
        return []
    half_GG = t_quantile(1 - ALPHA / (g - 1), table.freedom) * table.error_GG
    others = ~np.eye(g, dtype=bool)
    found = []
    for i, subject in enumerate(table.subjects):
        behind, half = table.difference_GG[i][others[i]], half_GG[i][others[i]]
        ends = [max(min((behind - half).min(), 0.0), -1.0), min(max((behind + half).min(), 0.0), 1.0)]
        within = ends[0] > -margin and table.complete_G[i]
        found.append(claim("noninferior", subject, None, behind.min(), ends, g, within))
    return found


def equivalent_claims(table: Blocks, pairs: list[Claim], limits: Limits) -> list[Claim]:
    """That a subject is within the margin of its arm's reference rank: the pair's interval."""
    found = []
    for pair in pairs:
        (arm, rank), (other_arm, other_rank) = ((x["arm"], x["rank"]) for x in (pair["subject"], pair["than"]))
        reference = limits.reference_of([r for a, r in table.subjects if a == arm])
        if arm != other_arm or reference not in (rank, other_rank):
            continue
        sign = 1 if other_rank == reference else -1
        ends = sorted(sign * end for end in pair["ci95"])
        subject, than = ((arm, rank), (arm, other_rank))[::sign]
        complete = all(table.complete_G[table.subjects.index(side)] for side in (subject, than))
        within = complete and -limits.margin < ends[0] and ends[1] < limits.margin
        found.append(claim("equivalent", subject, than, sign * pair["estimate"], ends, pair["family"], within))
    return found


def risk_claims(results: list[Result], risk: float) -> list[Claim]:
    """That the share of runs that end below the base is below `risk`, with the seed as the unit."""
    families = by_key(results, ("arm", "rank"))
    found = []
    for subject, runs in families.items():
        seeds = by_key(runs, ("seed",)).values()
        bad = sum(sum(map(negative, group)) / len(group) for group in seeds)
        n = len(seeds)
        ends = [0.0, risk_bound(bad, n, len(families))]
        found.append(claim("risk_below", subject, None, bad / n, ends, len(families), ends[1] < risk))
    return found
