"""Verdicts: judged pairs, hostile answers, and a pool whose workers are killed, hang and run out of memory. No Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankrl.reward.grade import Grader

JUDGED = Path(__file__).parent / "judged_pairs.tsv"


def judged() -> list[tuple[str, str, str]]:
    lines = JUDGED.read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return [(given, gold, verdict) for given, gold, verdict in rows]


@pytest.fixture(scope="module")
def grader():
    grader = Grader()
    yield grader
    grader.close()


def test_judged_pairs(grader):
    rows = judged()
    assert len({(given, gold) for given, gold, _ in rows}) == len(rows) >= 400
    outcomes = grader.outcomes([(given, gold) for given, gold, _ in rows])
    wrong = [(*row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome != row[2]]
    assert wrong == []
