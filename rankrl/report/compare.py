"""Arms against one of them, run by run: the same rank, batch size and seed share prompts, sampling and rows of A."""

from __future__ import annotations

from typing import Any

from scipy import stats

from rankrl.report.stats import outcome_gain, t_interval

Result = dict[str, Any]


def reference_arm(arms: list[str]) -> str | None:
    """The arm that the others are compared with: `off`, or the first by name. None where there is nothing to compare."""
    if len(arms) < 2:
        return None
    return "off" if "off" in arms else min(arms)


def comparisons(results: list[Result]) -> list[dict[str, Any]]:
    """A row for each arm, rank and batch size but the reference's: the gains minus the reference's of the same seed.

    Interval: Student t, 95 %, of the mean of the paired differences, each by itself: among many arms some miss the truth. None
    where all differences are equal: scores lie on a grid, and a few seeds with one value are no certainty.
    `pairing`: correlation of the arm's gains with the reference's over seeds; pairing helps by as much. Seeds that only one of the
    two has are left out and counted.
    """
    against = reference_arm(sorted({result["arm"] for result in results}))
    cells: dict[tuple[str, int, int], dict[int, Result]] = {}
    for result in results:
        cells.setdefault((result["arm"], result["rank"], result["batch_size"]), {})[result["seed"]] = result
    rows = []
    for (arm, rank, batch_size), runs in sorted(cells.items()):
        reference = cells.get((against or "", rank, batch_size), {})
        if against is None or arm == against or not (common := sorted(runs.keys() & reference.keys())):
            continue
        pairs = [(runs[seed], reference[seed]) for seed in common]
        where = {"arm": arm, "against": against, "rank": rank, "batch_size": batch_size}
        rows.append({**where, **_paired(pairs), "unpaired_seeds": len(runs.keys() ^ reference.keys())})
    return rows


def _paired(pairs: list[tuple[Result, Result]]) -> dict[str, Any]:
    gains = [(outcome_gain(ours), outcome_gain(theirs)) for ours, theirs in pairs]
    differences = [ours - theirs for ours, theirs in gains]
    sizes = [[result["trainable_params"] for result in side] for side in zip(*pairs, strict=True)]
    return {
        "n_pairs": len(pairs),
        "differences": differences,
        "mean_difference": sum(differences) / len(differences),
        "difference_ci95": t_interval(differences) if max(differences) - min(differences) > 1e-9 else None,
        "higher": sum(d > 0 for d in differences),
        "pairing": correlation(gains),
        "params_ratio": sum(sizes[0]) / sum(sizes[1]),
    }


def correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's; None with fewer than three pairs, which always lie on a line, or where one side does not vary."""
    x, y = zip(*pairs, strict=True)
    if len(pairs) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(stats.pearsonr(x, y).statistic)
