"""The report's sentences claim only what the corrected comparison supports."""

import re

import numpy as np
import pytest
from records import drawn, grid, result
from test_stats import plain

from rankrl.report.read import SweepRecords
from rankrl.report.statistics.limits import Limits
from rankrl.report.summary import sweep_summary
from rankrl.report.words import gain

CLAIMS = re.compile(r"\b(higher|lower|above|below rank|best)\b")


def summary_of(results, tmp_path):
    return sweep_summary(SweepRecords("demo", tmp_path, results, [], []))


def test_no_negative_run_is_a_bounded_risk(tmp_path):
    found = summary_of(plain([0.18, 0.2, 0.21, 0.22, 0.23, 0.22]), tmp_path)
    assert found["words"][0] == "Rank 1: +0.210 [+0.191, +0.229], 0 of 6 runs negative, risk below 0.46 (95 %)."
    assert found["words"][-1] == "6 runs are counted."


def test_ranks_that_are_not_told_apart_get_no_word_of_order(tmp_path):
    found = summary_of(plain([0.1, 0.2, 0.3], 1) + plain([0.2, 0.1, 0.35], 32), tmp_path)
    assert found["words"][0].startswith("No rank is shown to be within 0.01 of the best of the others")
    assert found["words"][1] == "None is shown to be below another one."
    assert found["words"][2] == "No rank is shown to gain over the base (95 % for all at once)."
    assert "not distinguishable from rank 32" in found["words"][3]
    assert not any(CLAIMS.search(word) for word in found["words"][3:5])
    claims = [row["claim"] for row in found["power"]]
    assert claims[0] == "rank 1 is within 0.01 of rank 32, or differs from it"


def test_a_difference_that_holds_is_said_with_its_interval(tmp_path):
    found = summary_of(plain([0.0, 0.01, -0.01, 0.0, 0.02], 1) + plain([0.2, 0.2, 0.2, 0.21, 0.22], 32), tmp_path)
    assert found["words"][0].startswith("To rely on: rank 32, +0.206 [+0.195, +0.217], 0 of 5 runs negative")
    assert found["words"][1] == (
        "Shown, for all pairs at once (95 %): rank 1 below rank 32 by 0.202. So the best is rank 32."
    )
    assert found["words"][2] == "The lowest rank that is shown to gain over the base: rank 32 (1 of 2 are)."
    assert "below rank 32 by 0.202 (difference [-0.212, -0.192]" in found["words"][3]
    assert "1 of 5 runs negative, risk 0.01 to 0.72" in found["words"][3]


@pytest.mark.slow
def test_every_verdict_agrees_with_its_interval(tmp_path):
    """In many random sweeps, no sentence claims an order if the family's interval contains 0."""
    runs = grid("arms", "ablate_init", "steps=60")
    arms = sorted({run.arm for run in runs})
    for seed in range(3):
        grown = drawn(runs, {arm: 0.1 + 0.004 * i for i, arm in enumerate(arms)}, 0.02, seed)
        found = summary_of([result(run, grown[run.run_id]) for run in runs], tmp_path)
        for row in found["arm_comparisons"]:
            (said,) = [word for word in found["words"] if word.startswith(f"Arm {row['arm']} is ")]
            low, high = row["family_ci95"]
            assert ("is higher than" in said) == (low > 0)
            assert ("is lower than" in said) == (high < 0)
            assert row["verdict"] == "inconclusive" or row["p_holm"] < 0.05


def test_arms_that_differ_over_all_ranks_are_not_said_to_be_alike(tmp_path):
    """Pooled over ranks, one arm is shown to be higher. None of the eight pairs of arm and rank
    alone is."""
    rng = np.random.default_rng(5)
    runs = [
        run | {"arm": arm}
        for arm, gain in (("off", 0.1), ("on", 0.13))
        for rank in (1, 2, 4, 8)
        for run in plain(gain + rng.normal(0, 0.03, 6), rank)
    ]
    found = summary_of(runs, tmp_path)
    assert found["best_set"]["excluded"] == [] and found["arm_comparisons"][0]["verdict"] == "higher"
    assert found["words"][1] == "None is shown to be below another one."
    assert any(word.startswith("Arm on is higher than arm off") for word in found["words"])


@pytest.mark.parametrize("bad, says", [(0, "risk below 0.46"), (2, "risk 0.04 to 0.78")])
def test_risk_in_words(bad, says):
    row = {"mean_gain": 0.1, "blocked_ci95": None, "negative_runs": bad, "n_seeds": 6, "n_blocks": 6}
    intervals = {0: [0.0, 0.459], 2: [0.043, 0.777]}
    assert says in gain(row | {"blocked_risk_ci95": intervals[bad]})


def test_the_answer_comes_first_and_follows_the_reader_s_margin(tmp_path):
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 0.01, 8)
    runs = [run for rank in (8, 32) for run in plain((0.2 + seeds + rng.normal(0, 0.004, 8)).tolist(), rank)]
    records = SweepRecords("demo", tmp_path, runs, [], [])
    strict, wide = (sweep_summary(records, Limits(margin=margin)) for margin in (0.001, 0.02))
    assert strict["words"][: len(strict["answer"])] == strict["answer"]
    assert strict["answer"][0].startswith("No rank is shown to be within 0.001 of the best")
    assert wide["answer"][0].startswith("To rely on: rank 8, ")
    assert "less than 0.02 below every other one" in wide["answer"][0]
    assert strict["ranks"] == wide["ranks"] and wide["limits"]["margin"] == 0.02


@pytest.mark.parametrize(
    "given, says",
    [
        ({"margin": 0.0}, r"--margin: got 0\.0, allowed: a gain above 0 and below 1"),
        ({"reference": 0}, "--reference: got 0, allowed: a rank of at least 1"),
        ({"risk": 1.0}, r"--risk: got 1\.0, allowed: a share above 0 and below 1"),
    ],
)
def test_limits_are_checked(given, says):
    with pytest.raises(ValueError, match=says):
        Limits(**given)
