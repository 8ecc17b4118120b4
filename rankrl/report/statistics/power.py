"""Claims that a sweep leaves open, and how many more seeds each one needs."""

from __future__ import annotations

from typing import Any

from rankrl.report.statistics.family import Row
from rankrl.report.statistics.intervals import seeds_for_risk
from rankrl.report.statistics.paired import MARGIN, reference_rank

RISK = 0.1
"""Reliable means a risk below this, which 29 seeds show if none of them is negative."""


def named(row: Row) -> str:
    """A row in words, such as `arm on, rank 4, batch 16`, from those of the three that it has."""
    parts = [f"arm {row['arm']}"] if row.get("arm") else []
    parts += [f"{word} {row[key]}" for word, key in (("rank", "rank"), ("batch", "batch_size")) if key in row]
    return ", ".join(parts) or "all runs"


def power(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Open claims, each with the number of further seeds that it needs: [{claim, seeds_more}].

    Differences of MARGIN are to be shown with 80 % power; risks below RISK, if no further run is
    negative.
    """
    return _ranks(summary) + _arms(summary) + _risks(summary)


def _ranks(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "claim": f"{named(row)} is within {MARGIN} of rank {row['reference_rank']}, or differs from it",
            "seeds_more": max(1, row["seeds_needed"] - row["n_blocks"]),
        }
        for row in summary["against_reference"]
        if row["verdict"] == "inconclusive" and not row["noninferior"] and row["seeds_needed"]
    ]


def _arms(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "claim": f"{named(row)} differs from arm {row['against']} by {MARGIN}",
            "seeds_more": max(1, row["seeds_needed"] - row["n_blocks"]),
        }
        for row in summary["arm_comparisons"]
        if row["verdict"] == "inconclusive" and row["seeds_needed"]
    ]


def _risks(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Open claims on the risk, for the lowest rank and the reference rank of each arm.

    These are the ranks that the sweep is about.
    """
    rows = []
    for row in summary["ranks"]:
        ranks = [r["rank"] for r in summary["ranks"] if r["arm"] == row["arm"]]
        asked = row["rank"] in (min(ranks), reference_rank(ranks)) and row["negative_gain_risk"] < RISK
        if asked and row["blocked_risk_ci95"][1] > RISK:
            bad = round(row["negative_gain_risk"] * row["n_blocks"])
            more = max(1, seeds_for_risk(bad, RISK) - row["n_blocks"])
            rows.append({"claim": f"{named(row)} has a risk below {RISK:.0%}", "seeds_more": more})
    return rows
