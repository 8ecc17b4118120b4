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

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import sqrt
from typing import Any

import numpy as np
from scipy import optimize, special

from rankrl.report.statistics.blocks import Blocks, Subject, blocks
from rankrl.report.statistics.cells import Result, by_key, negative
from rankrl.report.statistics.intervals import LEVEL, bounded, risk_bound, t_quantile, tukey_quantile
from rankrl.report.statistics.limits import DEFAULT, Limits

ALPHA = 1 - LEVEL
Claim = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """The subjects of a sweep: ranks of arms, and arms over all their ranks and batch sizes."""

    ranks: Blocks
    arms: Blocks | None
    """Subjects (arm, None); None where there is one arm."""

    @cached_property
    def pairs(self) -> list[tuple[Blocks, int, int]]:
        """The compared pairs: one family."""
        given = [self.ranks, self.arms] if self.arms else [self.ranks]
        return [(table, i, j) for table in given for i, j in table.compared]

    def quantile(self, table: Blocks, freedom: float) -> float:
        """Half-width of a pair's interval, in standard errors.

        Arms over all ranks are what a sweep with arms is for: they get half of the error.
        """
        alpha = ALPHA / 2 if self.arms else ALPHA
        return pair_quantile(len(table.subjects), len(table.compared), freedom, alpha)

    def interval(self, table: Blocks, i: int, j: int) -> list[float] | None:
        """Interval of the difference of subjects `i` and `j`, for all pairs at once."""
        mean, error = table.difference_GG[i, j], table.error_GG[i, j]
        half = self.quantile(table, table.freedom_GG[i, j]) * error
        return bounded(float(mean - half), float(mean + half)) if np.isfinite(half) else None


def tables(results: list[Result], references: dict[str, dict[str, str]] | None = None) -> Tables:
    """`references`: arms that each arm is compared with; None: with all."""
    ranks = replace(blocks(results), references=references)
    if len({run["arm"] for run in results}) < 2:
        return Tables(ranks, None)
    arms = replace(blocks(results, ("arm",)), references=references)
    return Tables(ranks, replace(arms, subjects=[(arm, None) for (arm,) in arms.subjects]))


def claims(
    results: list[Result], limits: Limits = DEFAULT, given: Tables | None = None, base_error: float = 0.0
) -> list[Claim]:
    """All claims on the arms and ranks of a sweep, supported or not.

    `given`: the tables of `results`, if they are made already. `base_error`: the standard error of
    the base score, if claims on gains are to hold for other samples of the base as well.
    """
    found = given or tables(results)
    pairs = pair_claims(found)
    return [
        *pairs,
        *positive_claims(found.ranks, base_error),
        *noninferior_claims(found, limits.margin),
        *equivalent_claims(found.ranks, pairs, limits),
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
    return dict(zip(("arm", "rank", "sweep"), subject, strict=False))


def of_kind(found: list[Claim], kind: str) -> list[Claim]:
    """The supported claims of a kind."""
    return [row for row in found if row["kind"] == kind and row["supported"]]


def dependable(found: list[Claim], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Subjects shown to be above the base and non-inferior to every other.

    `rows`: statistics by arm and rank. That of the fewest parameters comes first, of equal ones
    that of the higher mean.
    """
    size = {(row["arm"], row["rank"]): (row["trainable_params"], -(row["mean_gain"] or 0.0)) for row in rows}
    gains = [row["subject"] for row in of_kind(found, "above")]
    able = [row["subject"] for row in of_kind(found, "noninferior") if row["subject"] in gains]
    return sorted(able, key=lambda one: size[one["arm"], one["rank"]])


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


@lru_cache(maxsize=4096)
def pair_quantile(subjects: int, pairs: int, freedom: float, alpha: float = ALPHA) -> float:
    """Half-width, in standard errors, of intervals that hold for all pairs at once.

    Tukey's (at the degrees of freedom of each pair: Games and Howell 1976), or Bonferroni's where
    that is shorter, as where few of the pairs are compared.
    """
    widest = t_quantile(1 - alpha / 2 / max(1, pairs), freedom)
    if pairs < subjects * (subjects - 1) / 4:  # Tukey's is for twice as many at least
        return widest
    return min(tukey_quantile(1 - alpha, subjects, freedom) / sqrt(2), widest)


def pair_claims(given: Tables) -> list[Claim]:
    """For each compared pair, that the one with the lower mean is below the other."""
    found = []
    for table, i, j in given.pairs:
        low, high = (i, j) if table.difference_GG[i, j] <= 0 else (j, i)
        ends = given.interval(table, low, high) or [-1.0, 1.0]
        subjects = table.subjects[low], table.subjects[high]
        supported = ends[1] < 0 and table.complete_G[high]
        found.append(claim("below", *subjects, table.difference_GG[low, high], ends, len(given.pairs), supported))
    return found


def positive_claims(table: Blocks, base_error: float = 0.0) -> list[Claim]:
    """That a subject's mean gain is above 0. All gains share the error of the base score."""
    error_G, freedom_G = table.mean_error_G
    error_G = np.hypot(error_G, base_error)
    able = np.flatnonzero(np.isfinite(error_G))
    found = []
    for g in able:
        mean, half = table.mean_G[g], t_quantile(1 - ALPHA / 2 / len(able), freedom_G[g]) * error_G[g]
        ends = bounded(mean - half, mean + half)
        supported = ends[0] > 0 and table.complete_G[g]
        found.append(claim("above", table.subjects[g], None, mean, ends, len(able), supported))
    return found


@lru_cache(maxsize=4096)
def best_quantile(others: int, freedom: float) -> float:
    """One-sided 95 % quantile of the largest of t statistics that share one mean (Dunnett 1955).

    For differences of `others` means to one more, all of one variance: they correlate by 1/2.
    """
    node_Z, weight_Z = np.polynomial.hermite_e.hermegauss(64)
    weight_Z = weight_Z / weight_Z.sum()
    scale_U = np.sqrt(special.chdtri(freedom, (np.arange(128) + 0.5) / 128) / freedom)[:, None]

    def missed(q: float) -> float:
        below_UZ = special.ndtr(sqrt(2) * q * scale_U - node_Z) ** others
        return float((below_UZ @ weight_Z).mean()) - LEVEL

    return float(optimize.brentq(missed, 0.0, 1e4, xtol=1e-6))


def noninferior_claims(given: Tables, margin: float) -> list[Claim]:
    """That a subject's mean is less than `margin` below every other one's.

    Only a comparison with whichever is truly best can make a false claim. Subjects that are shown
    to be more than the margin below another one cannot be claimed, and do not count as comparisons.
    """
    table, g = given.ranks, len(given.ranks.subjects)
    if g < 2 or not np.isfinite(table.error_GG).all() or not (table.common_GG > 0).all():
        return []
    others = ~np.eye(g, dtype=bool)
    far_G = _far_below(given, margin)
    most = table.freedom_GG[others].max()
    level = special.stdtr(most, best_quantile(max(1, int((~far_G).sum()) - 1), most))  # of one comparison
    half_GG = special.stdtrit(table.freedom_GG, level) * table.error_GG
    found = []
    for i, subject in enumerate(table.subjects):
        behind, half = table.difference_GG[i][others[i]], half_GG[i][others[i]]
        ends = [max(min((behind - half).min(), 0.0), -1.0), min(max((behind + half).min(), 0.0), 1.0)]
        within = ends[0] > -margin and table.complete_G[i] and not far_G[i]
        found.append(claim("noninferior", subject, None, behind.min(), ends, g, within))
    return found


def _far_below(given: Tables, margin: float) -> np.ndarray:
    """Whether each subject is shown to be more than `margin` below another one, `[G]`."""
    far_G = np.zeros(len(given.ranks.subjects), dtype=bool)
    for i, j in given.ranks.compared:
        low, high = given.interval(given.ranks, i, j) or (-1.0, 1.0)
        far_G[i] |= high < -margin and given.ranks.complete_G[j]
        far_G[j] |= low > margin and given.ranks.complete_G[i]
    return far_G


def equivalent_claims(table: Blocks, pairs: list[Claim], limits: Limits) -> list[Claim]:
    """That a subject is within the margin of its arm's reference rank: the pair's interval."""
    found = []
    for pair in pairs:
        (arm, rank), (other_arm, other_rank) = ((x["arm"], x["rank"]) for x in (pair["subject"], pair["than"]))
        if arm != other_arm:
            continue
        reference = limits.reference_of([r for a, r in table.subjects if a == arm])
        if reference not in (rank, other_rank):
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
