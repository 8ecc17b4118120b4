"""What the report says of the published sweep: 9 ranks, 4 batch sizes, 6 seeds, 216 runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import BATCHES, RANKS, grid, published, result

from rankrl.report.read import SweepRecords
from rankrl.report.statistics.claims import of_kind
from rankrl.report.summary import sweep_summary

GRID = f"ranks={list(RANKS)}", f"batch_sizes={list(BATCHES)}", "seeds=[0,1,2,3,4,5]"
LOST = {"status": "failed", "gain": None, "final_score": None, "best_score": None, "error": "out of memory"}


@pytest.fixture(scope="module")
def runs():
    planned = grid("published", "low_rank", "scale=qwen3-8b", *GRID)
    grown = published(planned)
    return [result(run, grown[run.run_id]) | {"error": ""} for run in planned]


def summary_of(runs):
    return sweep_summary(SweepRecords("published", Path("nowhere"), runs, [], []))


@pytest.fixture(scope="module")
def whole(runs):
    return summary_of(runs)


def supported(summary):
    return {str((row["kind"], row["subject"], row["than"])) for row in summary["claims"] if row["supported"]}


def test_ranks_16_and_32_are_dependable_and_lower_ones_are_not_shown_to_be(whole):
    first, second, third, *_ = whole["answer"]
    assert first.startswith("To rely on: rank 16, +0.101 [+0.095, +0.107], 0 of 24 runs negative on 6 seeds")
    assert "So is rank 32. Of no smaller one (rank 1 to 8) is this shown." in first
    assert second == "To work on: rank 2, the lowest that is shown to gain over the base (8 of 9 are)."
    assert third.startswith("Shown, for all pairs at once (95 %): rank 1 below rank 32 by 0.100, ")
    assert third.endswith("So the best is one of rank 16 and rank 32.")
    assert [row["subject"]["rank"] for row in of_kind(whole["claims"], "noninferior")] == [16, 32]


def test_three_seeds_claim_less_and_nothing_else(runs, whole):
    few = summary_of([run for run in runs if run["seed"] < 3])
    assert supported(few) < supported(whole)
    assert few["answer"][0].startswith("To rely on: rank 32, ")


def test_a_run_that_ran_out_of_memory_is_one_sentence_more(runs, whole):
    """Of seed 5 at rank 64. The other ranks' statistics are the same to the bit."""
    found = summary_of([run | LOST if run["run_id"] == "r64-b16-s5" else run for run in runs])
    for name in ("cells", "ranks"):
        pairs = [(a, b) for a, b in zip(whole[name], found[name], strict=True) if a["rank"] != 64]
        pooled = {"pooled_ci95", "design_effect", "design_risk_ci95"}  # these draw on all ranks
        assert all({k: a[k] for k in a.keys() - pooled} == {k: b[k] for k in a.keys() - pooled} for a, b in pairs)
    assert found["answer"][0] == whole["answer"][0] + " Of 216 runs 1 failed: they are missing in all that follows."
    assert found["answer"][1:-1] == whole["answer"][1:]
    assert found["answer"][-1].startswith("Had each failed run ended with a score of 0, ")


def test_a_run_that_diverged_is_an_outcome_and_no_gain(runs):
    gone = {"status": "diverged", "gain": None, "final_score": None}
    found = summary_of([run | gone if run["run_id"] == "r32-b64-s2" else run for run in runs])
    (row,) = [row for row in found["ranks"] if row["rank"] == 32]
    assert (row["n_seeds"], row["ended_runs"], row["diverged_runs"], row["negative_runs"]) == (24, 23, 1, 1)
    assert row["mean_gain"] == pytest.approx(0.1019, abs=0.001) and row["gain_ci95"][0] > 0.08
    assert [claim["subject"]["rank"] for claim in of_kind(found["claims"], "noninferior")] == [16]
    assert any("1 of 24 diverged (0.00 to 0.21)" in said for said in found["words"])
