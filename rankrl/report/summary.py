"""summary.json: everything that the report says, from the records of one sweep."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rankrl.report.read import SweepRecords
from rankrl.report.statistics import evaluation
from rankrl.report.statistics.budget import LARGE_SCALES, budget, scale_footprint
from rankrl.report.statistics.cells import CELL, grouped, summary
from rankrl.report.statistics.claims import best_set, claims
from rankrl.report.statistics.limits import DEFAULT, Limits
from rankrl.report.statistics.paired import compared
from rankrl.report.statistics.pareto import pareto, pareto_points
from rankrl.report.statistics.power import power
from rankrl.report.words import answer, words

GROUPS = {"cells": CELL, "ranks": ("arm", "rank"), "batches": ("arm", "batch_size"), "arms": ("arm",)}


def sweep_summary(sweep: SweepRecords, limits: Limits = DEFAULT) -> dict[str, Any]:
    """The content of summary.json for one sweep."""
    statistics = summary(sweep.results)
    answers, damaged = evaluation.read_answers(sweep.directory, sweep.results)
    chances = evaluation.negative_on_other_items(answers) if answers else []
    for name, keys in GROUPS.items():
        evaluation.add_item_risk(statistics[name], keys, chances)
    found = claims(sweep.results, limits)
    points = pareto_points(sweep.results, statistics["cells"])
    whole = {
        **statistics,
        **compared(sweep.results, limits),
        "limits": asdict(limits),
        "claims": found,
        "best_set": best_set(found, [{key: row[key] for key in ("arm", "rank")} for row in statistics["ranks"]]),
        "pareto": pareto(points),
        "pareto_points": points,
        "budget": budget(sweep.results),
        "footprint_scales": [row for scale in LARGE_SCALES for row in scale_footprint(scale)],
        "evaluation": evaluation.evaluation(answers) if answers else None,
        "sources": evaluation.by_source(answers) if answers else [],
        "problems": sweep.problems + damaged,
        "confirmation": confirmation(sweep),
        "n_runs": len(sweep.results),
        "n_planned": sweep.n_planned,
    }
    whole["power"] = power(whole, limits)
    whole["answer"] = answer(whole)
    whole["words"] = words(whole)
    return whole


def confirmation(sweep: SweepRecords) -> list[dict[str, Any]]:
    """Statistics of the cells on the seeds that were not used to choose among them; [] if none."""
    fresh = [result for result in sweep.results if result["seed"] in sweep.confirming]
    return grouped(fresh, CELL) if fresh else []
