"""Problems of the records, each once with the runs that have it."""

from __future__ import annotations

from typing import Any

from rankrl.report.nothing_right import BEGINNING

SERIOUS = (BEGINNING, "failed", "diverged")
"""How the problems begin that come first, in this order (report/read.py)."""
WHOLE = "(the whole sweep)"


def grouped(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows of problem, n_runs and runs: first that nothing is right, failures and divergences.

    Within these, what most runs have comes first. n_runs is None for a problem of the whole sweep.
    """
    runs: dict[str, list[str]] = {}
    for row in problems:
        runs.setdefault(row["problem"], []).append(row["run"])
    rows = [
        {"problem": problem, "n_runs": sum(map(bool, names)) or None, "runs": ", ".join(filter(None, names)) or WHOLE}
        for problem, names in runs.items()
    ]
    return sorted(rows, key=lambda row: (_kind(row["problem"]), -(row["n_runs"] or 0)))


def _kind(problem: str) -> int:
    return next((i for i, word in enumerate(SERIOUS) if problem.startswith(word)), len(SERIOUS))
