"""Claims that a sweep leaves open, and how many more seeds each one needs."""

from __future__ import annotations

from typing import Any

from rankrl.report.statistics.claims import of_kind
from rankrl.report.statistics.family import Row
from rankrl.report.statistics.intervals import seeds_for_risk
from rankrl.report.statistics.limits import DEFAULT, Limits


def named(row: Row) -> str:
    """A row in words, such as `arm on, rank 4, batch 16`, from those of the three that it has."""
    parts = [f"arm {row['arm']}"] if row.get("arm") else []
    parts += [
        f"{word} {row[key]}" for word, key in (("rank", "rank"), ("batch", "batch_size")) if row.get(key) is not None
    ]
    return ", ".join(parts) or "all runs"


def power(summary: dict[str, Any], limits: Limits = DEFAULT) -> list[dict[str, Any]]:
    """Open claims, each with the number of further seeds that it needs: [{claim, seeds_more,
    lowest}], with whether it is on the lowest rank of an arm.

    Differences of the margin are to be shown with 80 % power, by the interval that the verdict is
    taken from; risks below the limit by the bound of the claim, if no further run is negative.
    """
    lowest = {min((r["arm"], r["rank"]) for r in summary["ranks"] if r["arm"] == arm) for arm in _arm_names(summary)}
    shown = [row["subject"] for row in of_kind(summary["claims"], "noninferior")]
    against = [row for row in summary["against_reference"] if {"arm": row["arm"], "rank": row["rank"]} not in shown]
    return _ranks(against, limits.margin, lowest) + _arms(summary, limits.margin) + _risks(summary, limits, lowest)


def _arm_names(summary: dict[str, Any]) -> set[str]:
    return {row["arm"] for row in summary["ranks"]}


def _ranks(against: list[Row], margin: float, lowest: set[tuple[str, int]]) -> list[dict[str, Any]]:
    return [
        {
            "claim": f"{named(row)} is within {margin} of rank {row['reference_rank']}, or differs from it",
            "seeds_more": max(1, row["seeds_needed"] - row["n_blocks"]),
            "lowest": (row["arm"], row["rank"]) in lowest,
        }
        for row in against
        if row["verdict"] == "inconclusive" and row["complete"] and not row["noninferior"] and row["seeds_needed"]
    ]


def _arms(summary: dict[str, Any], margin: float) -> list[dict[str, Any]]:
    return [
        {
            "claim": f"{named(row)} differs from arm {row['against']} by {margin}",
            "seeds_more": max(1, row["seeds_needed"] - row["n_blocks"]),
            "lowest": False,
        }
        for row in summary["arm_comparisons"]
        if row["verdict"] == "inconclusive" and row["complete"] and row["seeds_needed"]
    ]


def _risks(summary: dict[str, Any], limits: Limits, lowest: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """Open claims on the risk, for the lowest rank and the reference rank of each arm.

    These are the ranks that the sweep is about.
    """
    rows = []
    seeds = {(row["arm"], row["rank"]): row["n_blocks"] for row in summary["ranks"]}
    for claim in summary["claims"]:
        arm, rank = claim["subject"]["arm"], claim["subject"]["rank"]
        if claim["kind"] != "risk_below" or claim["supported"] or claim["estimate"] >= limits.risk:
            continue
        ranks = [r for a, r in seeds if a == arm]
        if (arm, rank) in lowest or rank == limits.reference_of(ranks):
            n = seeds[arm, rank]
            more = seeds_for_risk(claim["estimate"] * n, limits.risk, claim["family"]) - n
            said = f"{named(claim['subject'])} has a risk below {limits.risk:.0%}"
            rows.append({"claim": said, "seeds_more": more, "lowest": (arm, rank) in lowest})
    return rows
