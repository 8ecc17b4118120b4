"""What figures show of a sweep with very many arms: a panel for each of fifty is read by nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankrl.report.read import SweepRecords

MOST_ARMS = 12


def few_arms(sweep: SweepRecords, summary: dict[str, Any]) -> tuple[SweepRecords, dict[str, Any], str]:
    """(records, summary, note) of at most MOST_ARMS arms: what others are compared with, then by mean gain the highest and
    lowest in turn. The tables keep all; the note, for captions, is empty where nothing is left out.
    """
    arms = {row["arm"]: row["mean_gain"] for row in summary.get("arms", [])}
    if len(arms) <= MOST_ARMS:
        return sweep, summary, ""
    against = sorted({row["against"] for row in summary.get("comparisons", [])})
    ordered = sorted(arms, key=lambda arm: (arms[arm], arm))
    ends = [arm for pair in zip(reversed(ordered), ordered, strict=True) for arm in pair]
    kept = set(list(dict.fromkeys([*against, *ends]))[:MOST_ARMS])
    rows = {
        key: [row for row in value if "arm" not in row or row["arm"] in kept]
        for key, value in summary.items()
        if isinstance(value, list)  # of rows, or of sentences
    }
    results = [result for result in sweep.results if result["arm"] in kept]
    note = f" Shown: {MOST_ARMS} of {len(arms)} arms, the highest and lowest mean gains; the tables have all."
    return replace(sweep, results=results), summary | rows, note
