"""Axes of a grid: gain and risk by value, and the best point of each rank.

The best point is chosen by its mean, which is then too high: of nine equal points with six seeds by
0.6 sd of a run. Its interval is the one that holds for all points of all ranks at once (that of the
claim `above`), which no choice can break. `heldout_gain` leaves out each seed in turn, chooses by
the others, and is the mean gain on the seeds that were left out: it is not too high. A t interval
of these gains would hold in 84 to 93 % of cases only (simulated), so they have none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rankrl.recipe.axes import value_slug
from rankrl.report.statistics.blocks import Blocks
from rankrl.report.statistics.cells import Result, grouped
from rankrl.report.statistics.claims import Claim
from rankrl.report.statistics.pooled import add_pooled
from rankrl.report.statistics.references import ARM, Values, place

FEWEST_SEEDS = 3
"""Seeds below which no choice is tried on a seed that it has not seen."""


def by_value(results: list[Result], values: Values) -> list[dict[str, Any]]:
    """Statistics of each value of each axis at each rank: over all else, every cell alike."""
    rows = []
    for key, known in values.items():
        texts = [value_slug(value) for value in known]
        found = [run | _along(run, key, texts) for run in results if key in run["axes"]]
        shown = grouped(found, ("rank", "value"))
        add_pooled(shown, found, ("rank", "value"))
        rows += [{"axis": key} | row | {"value": known[row["value"]]} for row in shown]
    return rows


def _along(run: Result, key: str, texts: list[str]) -> dict[str, Any]:
    """The place of a run's value on an axis, and an arm for all else that its arm stands for."""
    others = place(run)
    return {"value": texts.index(others.pop(key)), "arm": repr(others)}


def best_points(
    results: list[Result], ranks: list[dict[str, Any]], table: Blocks, claims: list[Claim], values: Values
) -> list[dict[str, Any]]:
    """The point of the highest mean gain at each rank, and at each arm that the recipe names.

    `ranks`: statistics by arm and rank. Points of which a run diverged, and those with far fewer
    seeds than others, are not chosen: their means are not to be relied on. best is None where no
    point is left. family_ci95 and family are those of the claim `above`; None where there is none.
    """
    if not values:
        return []
    rows = {(row["arm"], row["rank"]): row for row in ranks}
    above = {(row["subject"]["arm"], row["subject"]["rank"]): row for row in claims if row["kind"] == "above"}
    points = {run["arm"]: run["axes"] for run in results}
    groups: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for run in {(run["arm"], run["rank"]): run for run in results if run["axes"].keys() == values.keys()}.values():
        groups.setdefault((place(run)[ARM], run["rank"]), []).append((run["arm"], run["rank"]))
    found = []
    for (given, rank), subjects in sorted(groups.items()):
        able = [g for g, subject in enumerate(table.subjects) if subject in subjects and _sound(table, g)]
        row = {"arm": given, "rank": rank, "n_points": len(subjects), "n_left_out": len(subjects) - len(able)}
        best = max(able, key=lambda g: float(table.mean_G[g]), default=None)
        found.append(row | (_chosen(table, able, best, rows, above, points) if best is not None else NOTHING))
    return found


def _sound(table: Blocks, g: int) -> bool:
    """Whether all runs of a subject ended with a score, and it has as many seeds as it takes."""
    return bool(table.complete_G[g] and np.isfinite(table.mean_G[g]))


NOTHING = dict.fromkeys(
    ("best", "mean_gain", "family_ci95", "family", "heldout_gain", "n_seeds_choosing", "n_seeds_alike")
)


def _chosen(
    table: Blocks,
    able: list[int],
    best: int,
    rows: dict[tuple[str, int], dict[str, Any]],
    above: dict[tuple[str, int], Claim],
    points: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    subject = table.subjects[best]
    claim, row = above.get(subject), rows[subject]
    return {
        "best": subject[0],
        "axes": points[subject[0]],
        "mean_gain": row["mean_gain"],
        "family_ci95": claim and claim["ci95"],
        "family": claim and claim["family"],
        **{key: row[key] for key in ("negative_gain_risk", "design_risk_ci95", "n_seeds", "n_blocks")},
        **held_out(table.level_GS[able], able.index(best)),
    }


def held_out(gain_PS: np.ndarray, best: int) -> dict[str, Any]:
    """Mean gain on each seed of the point that is best on the other seeds, over P points.

    n_seeds_choosing: seeds that all points have; n_seeds_alike: those without which `best` is
    chosen. None with fewer than FEWEST_SEEDS.
    """
    gain_PS = gain_PS[:, np.isfinite(gain_PS).all(0)]
    seeds = gain_PS.shape[1]
    if seeds < FEWEST_SEEDS:
        return {"heldout_gain": None, "n_seeds_choosing": seeds, "n_seeds_alike": None}
    chosen_S = (gain_PS.sum(1, keepdims=True) - gain_PS).argmax(0)
    gain = float(gain_PS[chosen_S, np.arange(seeds)].mean())
    return {"heldout_gain": gain, "n_seeds_choosing": seeds, "n_seeds_alike": int((chosen_S == best).sum())}
