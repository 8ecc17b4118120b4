"""Comparisons between runs of the same seed: arms, ranks, and the set of the best.

Runs of one seed share prompts, sampling and rows of A.
"""

from __future__ import annotations

from typing import Any

from scipy import stats

from rankrl.report.statistics.cells import CELL, Result, by_key, outcome_gain
from rankrl.report.statistics.family import Row, holm, judge, paired, seed_blocks, t_test
from rankrl.report.statistics.intervals import EQUAL, LEVEL, sd_of_mean, seeds_for_difference, shrunk
from rankrl.report.statistics.limits import DEFAULT, Limits


def reference_arm(arms: list[str]) -> str | None:
    """The arm to compare others with: `off`, else the first by name; None with fewer than two."""
    if len(arms) < 2:
        return None
    return "off" if "off" in arms else min(arms)


def comparisons(results: list[Result]) -> list[Row]:
    """Each arm against the reference arm, one row per arm, rank and batch size that both have.

    A difference is the gain of a run minus that of the reference arm's run of the same seed.
    difference_ci95: 95 % t interval of the mean paired difference. family_ci95: family-wise, holds
    for all rows at once. Both are None for one pair, or where all differences are equal.
    pairing: correlation over seeds of the arm's gains with the reference's; pairing helps by as
    much. unpaired_seeds: number of seeds that only one of the two has; they are left out.
    """
    against = reference_arm(sorted({result["arm"] for result in results}))
    cells = {cell: {run["seed"]: run for run in runs} for cell, runs in by_key(results, CELL).items()}
    rows = []
    for (arm, rank, batch_size), runs in cells.items():
        reference = cells.get((against, rank, batch_size), {})
        if against is None or arm == against or not (common := sorted(runs.keys() & reference.keys())):
            continue
        pairs = [(runs[seed], reference[seed]) for seed in common]
        where = {"arm": arm, "against": against, "rank": rank, "batch_size": batch_size}
        rows.append({**where, **_paired(pairs), "unpaired_seeds": len(runs.keys() ^ reference.keys())})
    return judge(rows)


def _paired(pairs: list[tuple[Result, Result]]) -> Row:
    gains = [(outcome_gain(ours), outcome_gain(theirs)) for ours, theirs in pairs]
    differences = [ours - theirs for ours, theirs in gains]
    sizes = [[result["trainable_params"] for result in side] for side in zip(*pairs, strict=True)]
    return {
        **paired([(pair[0]["seed"], difference) for pair, difference in zip(pairs, differences, strict=True)]),
        "differences": differences,
        "higher": sum(d > 0 for d in differences),
        "pairing": correlation(gains),
        "params_ratio": sum(sizes[0]) / sum(sizes[1]),
    }


def correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's correlation; None where one side does not vary, or with fewer than three pairs.

    Two pairs always lie on a line.
    """
    x, y = zip(*pairs, strict=True)
    if len(pairs) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.pearsonr(x, y).statistic)


def matched(ours: list[Result], theirs: list[Result], *but: str) -> list[tuple[int, float]]:
    """(seed, gain of ours minus gain of theirs) of each pair of matching runs.

    Two runs match if they have the same arm, rank, batch size and seed, without the keys in `but`.
    """
    keys = tuple(key for key in (*CELL, "seed") if key not in but)
    reference = {tuple(run[key] for key in keys): outcome_gain(run) for run in theirs}
    found = [(run["seed"], outcome_gain(run), reference.get(tuple(run[key] for key in keys))) for run in ours]
    return [(seed, gain - other) for seed, gain, other in found if other is not None]


def arm_comparisons(results: list[Result], limits: Limits = DEFAULT) -> list[Row]:
    """Each arm against the reference arm, pooled over all ranks and batch sizes that both have."""
    arms = {arm: runs for (arm,), runs in by_key(results, ("arm",)).items()}
    against = reference_arm(list(arms))
    rows = []
    for arm, runs in arms.items():
        if against is not None and arm != against and (pairs := matched(runs, arms[against], "arm")):
            rows.append({"arm": arm, "against": against, **paired(pairs)})
    _add_seeds_needed(rows, limits.margin)
    return judge(rows)


def against_reference(results: list[Result], limits: Limits = DEFAULT) -> list[Row]:
    """Each rank of an arm against its reference rank, at the batch sizes and seeds that both have.

    noninferior: the mean is above the reference's minus the margin, by a one-sided t test at 2.5 %
    with Holm's correction over the rows. seeds_needed: total number of seeds that shows a
    difference of the margin with 80 % power.
    """
    families = by_key(results, ("arm", "rank"))
    rows = []
    for (arm, rank), runs in families.items():
        reference = limits.reference_of([r for a, r in families if a == arm])
        pairs = matched(runs, families[arm, reference], "rank")
        if rank == reference or not pairs:
            continue
        row = {"arm": arm, "rank": rank, "reference_rank": reference, **paired(pairs), "margin": limits.margin}
        rows.append(row | {"p_noninferior": t_test(seed_blocks(pairs), above=-limits.margin)})
    _add_seeds_needed(rows, limits.margin)
    for row, p in zip(judge(rows), holm(row["p_noninferior"] for row in rows), strict=True):
        row["noninferior"] = p is not None and p < (1 - LEVEL) / 2
    return rows


def _add_seeds_needed(rows: list[Row], margin: float) -> None:
    """Adds seeds_needed to each row, from its sd over seeds, shrunk to the pooled sd of all rows.

    The sd of a few seeds alone is too uncertain. None where nothing varies.
    """
    freedom = [row["n_blocks"] - 1 for row in rows]
    spread = [sd_of_mean(row["difference_ci95"], row["n_blocks"]) or 0.0 for row in rows]
    for row, variance in zip(rows, shrunk([sd**2 for sd in spread], freedom), strict=True):
        known = variance > EQUAL**2
        row["seeds_needed"] = seeds_for_difference(variance**0.5, margin, len(rows)) if known else None


def compared(results: list[Result], limits: Limits = DEFAULT) -> dict[str, Any]:
    """All comparisons between runs of the same seed, by their keys in summary.json."""
    return {
        "comparisons": comparisons(results),
        "arm_comparisons": arm_comparisons(results, limits),
        "against_reference": against_reference(results, limits),
    }
