"""summary.json: everything that the report says, from the records of one sweep."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rankrl.report.read import SweepRecords
from rankrl.report.statistics import evaluation
from rankrl.report.statistics.along import best_points, by_value
from rankrl.report.statistics.averages import averages
from rankrl.report.statistics.budget import LARGE_SCALES, budget, scale_footprint
from rankrl.report.statistics.cells import CELL, Result, grouped, summary
from rankrl.report.statistics.claims import Claim, best_set, claims, dependable, tables
from rankrl.report.statistics.limits import DEFAULT, Limits
from rankrl.report.statistics.paired import compared
from rankrl.report.statistics.pareto import pareto, pareto_points
from rankrl.report.statistics.pooled import add_pooled
from rankrl.report.statistics.power import power
from rankrl.report.statistics.references import references
from rankrl.report.words import answer, words

GROUPS = {"cells": CELL, "ranks": ("arm", "rank"), "batches": ("arm", "batch_size"), "arms": ("arm",)}


def sweep_summary(sweep: SweepRecords, limits: Limits = DEFAULT) -> dict[str, Any]:
    """The content of summary.json for one sweep."""
    results = sweep.counted
    statistics = summary(results)
    answers, damaged = evaluation.read_answers(sweep.directory, results)
    chances = evaluation.negative_on_other_items(answers) if answers else []
    points = {run["arm"]: run.get("axes", {}) for run in results}
    for name, keys in GROUPS.items():
        add_pooled(statistics[name], results, keys)
        evaluation.add_item_risk(statistics[name], keys, chances)
        for row in statistics[name]:
            row["failed_runs"] = sum(all(run[key] == row[key] for key in keys) for run in sweep.failed)
            row |= {"axes": points[row["arm"]]} if sweep.axes else {}
    against = references(results, sweep.axes)
    made = tables(results, against if sweep.axes else None)
    evaluated = evaluation.evaluation(answers) if answers else None
    base_error = evaluation.shared_error(sweep, evaluated)
    found = claims(results, limits, made, base_error)
    dots = pareto_points(results, statistics["cells"])
    whole = {
        **statistics,
        **compared(results, made, limits, against),
        "limits": asdict(limits),
        "claims": found,
        "dependable": dependable(found, statistics["ranks"]),
        "best_set": best_set(found, [{key: row[key] for key in ("arm", "rank")} for row in statistics["ranks"]]),
        "axes": [{"key": key, "values": values} for key, values in sweep.axes.items()],
        "axis_values": by_value(results, sweep.axes),
        "best_points": best_points(results, statistics["ranks"], made.ranks, found, sweep.axes),
        "averages": averages(results),
        "pareto": pareto(dots),
        "pareto_points": dots,
        "budget": budget(results),
        "footprint_scales": [row for scale in LARGE_SCALES for row in scale_footprint(scale)],
        "evaluation": evaluated,
        "sources": evaluation.by_source(answers) if answers else [],
        "problems": sweep.problems + damaged,
        "confirmation": confirmation(sweep),
        "n_runs": len(results),
        "n_failed": len(sweep.failed),
        "n_unfinished": max(len(sweep.unfinished), (sweep.n_planned or 0) - len(sweep.results)),
        "n_short_cells": made.ranks.short,
        "n_lost_ranks": len(_subjects(sweep.failed) - _subjects(results)),
        "worst_case": worst_case(found, results, sweep.failed, limits, base_error, made.ranks.references),
        "n_planned": sweep.n_planned,
    }
    whole["power"] = power(whole, limits)
    whole["answer"] = answer(whole)
    whole["words"] = words(whole)
    return whole


def _subjects(results: list[Result]) -> set[tuple[str, int]]:
    return {(run["arm"], run["rank"]) for run in results}


def worst_case(
    found: list[Claim],
    results: list[Result],
    failed: list[Result],
    limits: Limits,
    base_error: float = 0.0,
    against: dict[str, dict[str, str]] | None = None,
) -> dict[str, int] | None:
    """How many supported claims would still be, had each failed run lost its whole base score.

    None if no run failed.
    """
    if not failed:
        return None
    lost = [run | {"gain": -(run["base_score"] or 0.0), "status": "diverged"} for run in failed]
    given = tables(results + lost, against)
    again = {_key(row) for row in claims(results + lost, limits, given, base_error) if row["supported"]}
    supported = {_key(row) for row in found if row["supported"]}
    return {"supported": len(supported), "kept": len(supported & again)}


def _key(claim: Claim) -> str:
    """What a claim says, without its numbers."""
    return json.dumps([claim[part] for part in ("kind", "subject", "than")])


def confirmation(sweep: SweepRecords) -> list[dict[str, Any]]:
    """Statistics of the cells on the seeds that were not used to choose among them; [] if none."""
    fresh = [result for result in sweep.counted if result["seed"] in sweep.confirming]
    rows = grouped(fresh, CELL) if fresh else []
    add_pooled(rows, fresh, CELL)
    return rows
