"""Comparisons between runs of the same seed: arms, and ranks with the reference rank.

Runs of one seed share prompts, sampling and rows of A.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from scipy import special, stats

from rankrl.report.statistics.blocks import Blocks, blocks
from rankrl.report.statistics.cells import CELL, Result, by_key, with_gain
from rankrl.report.statistics.claims import Tables
from rankrl.report.statistics.family import Row, difference, holm, judge, verdict
from rankrl.report.statistics.intervals import seeds_for_difference
from rankrl.report.statistics.limits import DEFAULT, Limits
from rankrl.report.statistics.references import one_reference, references

References = dict[str, dict[str, str]]
"""Arm -> what it differs in -> the arm that it is compared with (statistics/references.py)."""


def comparisons(results: list[Result], against: References | None = None) -> list[Row]:
    """Each arm against its references, one row per pair, rank and batch size that both have.

    `against`: arm -> what it differs in -> reference; by default one arm is that of all. A
    difference is the gain of a run minus that of the reference arm's run of the same seed.
    difference_ci95: 95 % t interval of the mean paired difference, with the variance of
    report/statistics/spread.py. family_ci95: family-wise, holds for all rows at once. Both are None
    for one pair, or where nothing varies. pairing: correlation over seeds of the arm's gains with
    the reference's; pairing helps by as much. tokens_ratio: the arm's training tokens over the
    reference's, of the same pairs; None where none are recorded. unpaired_seeds: number of seeds
    that only one of the two has; they are left out.
    """
    against = references(results, {}) if against is None else against
    table = blocks(results, CELL)
    place = {cell: g for g, cell in enumerate(table.subjects)}
    cells = {cell: {run["seed"]: run for run in runs} for cell, runs in by_key(with_gain(results), CELL).items()}
    rows = []
    for (arm, rank, batch_size), runs in cells.items():
        for along, other in against.get(arm, {}).items():
            reference = cells.get((other, rank, batch_size), {})
            common = sorted(runs.keys() & reference.keys())
            i, j = place[arm, rank, batch_size], place.get((other, rank, batch_size), -1)
            if not common or not table.common_GG[i, j]:  # one of the two has few seeds
                continue
            where = {"arm": arm, "against": other, "along": along, "rank": rank, "batch_size": batch_size}
            pairs = _pairs([(runs[seed], reference[seed]) for seed in common])
            unpaired = len(runs.keys() ^ reference.keys())
            rows.append({**where, **difference(table, i, j), **pairs, "unpaired_seeds": unpaired})
    return judge(rows)


def _pairs(pairs: list[tuple[Result, Result]]) -> Row:
    gains = [(ours["gain"], theirs["gain"]) for ours, theirs in pairs]
    differences = [ours - theirs for ours, theirs in gains]
    sides = [*zip(*pairs, strict=True)]
    params, tokens = ([sum(run[key] for run in side) for side in sides] for key in ("trainable_params", "tokens_total"))
    return {
        "differences": differences,
        "higher": sum(d > 0 for d in differences),
        "pairing": correlation(gains),
        "params_ratio": params[0] / params[1],
        "tokens_ratio": tokens[0] / tokens[1] if all(tokens) else None,
    }


def correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's correlation; None where one side does not vary, or with fewer than three pairs.

    Two pairs always lie on a line.
    """
    x, y = zip(*pairs, strict=True)
    if len(pairs) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.pearsonr(x, y).statistic)


def arm_comparisons(given: Tables, limits: Limits = DEFAULT, against: References | None = None) -> list[Row]:
    """Each arm against its references, over all ranks and batch sizes that both have.

    family_ci95 and verdict are those of the claims on the two.
    """
    if given.arms is None:
        return []
    names, rows = [arm for arm, _ in given.arms.subjects], []
    against = one_reference(names) if against is None else against
    for i, arm in enumerate(names):
        for along, other in against.get(arm, {}).items():
            j = names.index(other) if other in names else i
            if i != j and given.arms.common_GG[i, j]:
                named = {"arm": arm, "against": other, "along": along}
                rows.append({**named, **_claimed(given, given.arms, i, j, limits)})
    return _with_holm(rows)


def against_reference(given: Tables, limits: Limits = DEFAULT) -> list[Row]:
    """Each rank of an arm against its reference rank, at the batch sizes and seeds that both have.

    family_ci95 and verdict are those of the claims on the two. noninferior: that interval lies
    above a loss of the margin. p_noninferior: one-sided, of the t test of that loss.
    """
    table, rows = given.ranks, []
    for i, (arm, rank) in enumerate(table.subjects):
        reference = limits.reference_of([r for a, r in table.subjects if a == arm])
        j = table.subjects.index((arm, reference))
        if i == j or not table.common_GG[i, j]:
            continue
        row = _claimed(given, table, i, j, limits)
        ends = row["family_ci95"]
        within = bool(ends) and ends[0] > -limits.margin and bool(table.complete_G[i])
        above = _chance_of_loss(row, limits.margin)
        named = {"arm": arm, "rank": rank, "reference_rank": reference}
        rows.append({**named, **row, "margin": limits.margin, "p_noninferior": above, "noninferior": within})
    return _with_holm(rows)


def _chance_of_loss(row: Row, margin: float) -> float | None:
    """One-sided p of the t test that the mean difference is -margin, or None."""
    if row["standard_error"] is None:
        return None
    return float(special.stdtr(row["freedom"], -(row["mean_difference"] + margin) / row["standard_error"]))


def _claimed(given: Tables, table: Blocks, i: int, j: int, limits: Limits) -> Row:
    """The difference of two subjects with interval and verdict of its claim.

    seeds_needed: total number of seeds that shows a difference of the margin with 80 % power, by
    this interval; None where nothing varies.
    """
    row, ends = difference(table, i, j), given.interval(table, i, j)
    shown = verdict(ends)
    better = {"higher": i, "lower": j}.get(shown, i)
    seeds = _seeds_needed(partial(given.quantile, table), row, limits.margin)
    complete = bool(table.complete_G[i] and table.complete_G[j])
    return row | {
        "complete": complete,
        "family_ci95": ends,
        "verdict": shown if table.complete_G[better] else "inconclusive",
        "seeds_needed": seeds,
    }


def _seeds_needed(quantile: Callable[[float], float], row: Row, margin: float) -> int | None:
    error, n = row["standard_error"], row["n_blocks"]
    if error is None or n < 2:
        return None
    return seeds_for_difference(error * n**0.5, margin, quantile, row["freedom"] / (n - 1), row["freedom"])


def _with_holm(rows: list[Row]) -> list[Row]:
    for row, p in zip(rows, holm(row["p"] for row in rows), strict=True):
        row["p_holm"] = p
    return rows


def compared(
    results: list[Result], given: Tables, limits: Limits = DEFAULT, against: References | None = None
) -> dict[str, Any]:
    """All comparisons between runs of the same seed, by their keys in summary.json."""
    against = references(results, {}) if against is None else against
    return {
        "comparisons": comparisons(results, against),
        "arm_comparisons": arm_comparisons(given, limits, against),
        "against_reference": against_reference(given, limits),
    }
