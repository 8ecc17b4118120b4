"""The report's sentences claim only what the corrected comparison supports."""

import json
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
    more = [row["seeds_more"] for row in found["power"]]
    assert found["answer"] == [
        "No rank is shown to be both above the base and within 0.01 of every other one: which one to rely on is open.",
        "No rank is shown to gain over the base (95 % for all at once).",
        "None is shown to be below another one.",
        f"Not known yet: whether rank 1 is within 0.01 of rank 32, or differs from it; that takes {more[0]} more seeds.",
        f"Not known yet: whether rank 1 has a risk below 10%; that takes {more[1]} more seeds.",
    ]
    assert "not distinguishable from rank 32" in found["words"][5]
    assert not any(CLAIMS.search(word) for word in found["words"][5:7])


def test_a_difference_that_holds_is_said_with_its_interval(tmp_path):
    found = summary_of(plain([0.0, 0.01, -0.01, 0.0, 0.02], 1) + plain([0.2, 0.2, 0.2, 0.21, 0.22], 32), tmp_path)
    assert found["answer"] == [
        "To rely on: rank 32, +0.206 [+0.194, +0.218], 0 of 5 runs negative, risk below 0.52 (95 %); it is above the base "
        "and less than 0.01 below every other one (95 % each, for all at once). Of no smaller one (rank 1) is this shown.",
        "To work on: rank 32, the lowest that is shown to gain over the base (1 of 2 are).",
        "Shown, for all pairs at once (95 %): rank 1 below rank 32 by 0.202. So the best is rank 32.",
        "Not known yet: whether rank 32 has a risk below 10%; that takes 31 more seeds.",
    ]
    (said,) = [word for word in found["words"] if word.startswith("Rank 1: ")]
    assert "below rank 32 by 0.202 (difference [-0.212, -0.192], for all pairs at once)" in said
    assert "1 of 5 runs negative, risk 0.01 to 0.72" in said


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
        for arm, gain in (("off", 0.1), ("on", 0.135))
        for rank in (1, 2, 4, 8)
        for run in plain(gain + rng.normal(0, 0.03, 6), rank)
    ]
    found = summary_of(runs, tmp_path)
    assert found["best_set"]["excluded"] == [] and found["arm_comparisons"][0]["verdict"] == "higher"
    assert "Shown, for all pairs at once (95 %): arm off below arm on by 0.027." in found["answer"]
    assert any(word.startswith("Arm on is higher than arm off") for word in found["words"])


@pytest.mark.parametrize(
    ("millions", "says"),
    [((2.2, 1.8), ""), ((2.0, 2.3), "; it took 1.00 to 1.15 times the training tokens of arm off")],
)
def test_an_arm_that_took_other_tokens_says_so(tmp_path, millions, says):
    tokens = {("on", rank): int(1e6 * m) for rank, m in zip((1, 2), millions, strict=True)}
    gains = {"off": (0.10, 0.11, 0.13), "on": (0.12, 0.11, 0.16)}
    runs = [
        run | {"arm": arm, "tokens_total": tokens.get((arm, rank), 2_000_000)}
        for arm, of_seeds in gains.items()
        for rank in (1, 2)
        for run in plain(of_seeds, rank)
    ]
    (said,) = [word for word in summary_of(runs, tmp_path)["words"] if word.startswith("Arm on is ")]
    assert said.endswith(f"(all pairs at once; 6 pairs on 3 seeds){says}.")


@pytest.mark.parametrize("bad, says", [(0, "risk below 0.46"), (2, "risk 0.04 to 0.78")])
def test_risk_in_words(bad, says):
    row = {"mean_gain": 0.1, "pooled_ci95": None, "negative_runs": bad, "n_seeds": 6, "n_blocks": 6}
    intervals = {0: [0.0, 0.459], 2: [0.043, 0.777]}
    assert says in gain(row | {"design_risk_ci95": intervals[bad], "ended_runs": 6, "diverged_runs": 0})


def test_runs_that_share_seeds_have_two_bounds_of_risk():
    row = {"mean_gain": 0.1, "pooled_ci95": [0.05, 0.15], "negative_runs": 1, "n_seeds": 24, "n_blocks": 6}
    risks = {"design_risk_ci95": [0.001, 0.21], "blocked_risk_ci95": [0.0, 0.47], "diverged_ci95": [0.0, 0.21]}
    assert gain(row | risks | {"ended_runs": 23, "diverged_runs": 1}) == (
        "+0.100 [+0.050, +0.150] over the 23 of 24 runs that ended with a score, 1 of 24 diverged (0.00 to 0.21), 1 of 24 "
        "runs negative on 6 seeds, risk 0.00 to 0.21, or 0.00 to 0.47 if the runs of a seed are as one (95 %)"
    )
    none = {"mean_gain": None, "pooled_ci95": None, "ended_runs": 0, "diverged_runs": 24, "negative_runs": 24}
    assert gain(row | risks | none).startswith("no run ended with a score, 24 of 24 diverged (0.00 to 0.21)")


def test_the_answer_comes_first_and_follows_the_reader_s_margin(tmp_path):
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 0.01, 8)
    runs = [run for rank in (8, 32) for run in plain((0.2 + seeds + rng.normal(0, 0.004, 8)).tolist(), rank)]
    records = SweepRecords("demo", tmp_path, runs, [], [])
    strict, wide = (sweep_summary(records, Limits(margin=margin)) for margin in (0.001, 0.02))
    assert strict["words"][: len(strict["answer"])] == strict["answer"]
    assert strict["answer"][0].startswith("No rank is shown to be both above the base and within 0.001 of every other")
    assert wide["answer"][0].startswith("To rely on: rank 8, ")
    assert "less than 0.02 below every other one" in wide["answer"][0]
    assert strict["ranks"] == wide["ranks"] and wide["limits"]["margin"] == 0.02


@pytest.mark.parametrize(
    "given, says",
    [
        ({"margin": 0.0}, r"--margin: got 0\.0, allowed: a gain of at least 0\.000001 and below 1"),
        ({"reference": 0}, "--reference: got 0, allowed: a rank of at least 1"),
        ({"risk": 1.0}, r"--risk: got 1\.0, allowed: a share above 0 and below 1"),
    ],
)
def test_limits_are_checked(given, says):
    with pytest.raises(ValueError, match=says):
        Limits(**given)


LOST = {"gain": None, "final_score": None, "status": "diverged"}
SHAPES = {
    "one seed": plain([0.1], 1) + plain([0.2], 8),
    "one seed, arms": [run | {"arm": arm} for arm in "ab" for run in plain([0.1], 1) + plain([0.2], 8)],
    "all diverged": [run | LOST for run in plain([0.1, 0.2], 1) + plain([0.2, 0.1], 8)],
    "one rank diverged": [run | LOST for run in plain([0.1, 0.2], 1)] + plain([0.2, 0.1, 0.3], 8),
    "no seed in common": plain([0.1, 0.2], 1) + [run | {"seed": run["seed"] + 5} for run in plain([0.1, 0.25], 8)],
    "no batch size in common": plain([0.1, 0.2], 1, 16) + plain([0.1, 0.25], 8, 32),
    "equal": plain([0.1] * 3, 1) + plain([0.1] * 3, 8),
    "one equal": plain([0.1] * 3, 1) + plain([0.1, 0.2, 0.15], 8) + plain([0.1, 0.2, 0.16], 16),
    "short arms": [
        run | {"arm": arm} for arm, n in (("a", 6), ("b", 2)) for run in plain([0.1 + i / 99 for i in range(n)])
    ],
    "unbalanced": plain([0.1, 0.2, 0.3], 1, 16) + plain([0.1], 1, 32) + plain([0.2, 0.3], 8, 16) + plain([0.2], 8, 32),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_of_a_sweep_breaks_the_report(shape, tmp_path):
    """Nor does it make a number that is none, a gain that cannot be, or a rank to rely on."""
    found = summary_of(SHAPES[shape], tmp_path)
    json.dumps(found, allow_nan=False)
    ends = [row["pooled_ci95"] for row in found["ranks"] + found["cells"] if row["pooled_ci95"]]
    assert all(-0.3 <= low <= high <= 0.7 for low, high in ends)
    assert found["answer"][0].startswith("No rank is shown to be both above the base and within 0.01 of every other")
    diverged = [said for said in found["answer"] if said.startswith("Diverged, which counts as negative: ")]
    assert len(diverged) == ("diverged" in shape)
