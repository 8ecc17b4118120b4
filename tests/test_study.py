"""The study's records and its sums.

Packed and unpacked, records give the report that the runs themselves give.
"""

from __future__ import annotations

import itertools
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, runs_of
from records import ablation, small

from rankrl.report.build import build


@pytest.fixture
def study(monkeypatch):
    """Imports a file of study/."""
    monkeypatch.syspath_prepend(str(ROOT / "study"))
    return import_module


def test_the_report_of_what_was_kept_is_that_of_the_runs(study, tmp_path):
    keep, root, file = study("keep"), small(tmp_path / "runs"), tmp_path / "part.parquet"
    finished = len([*root.glob("*/result.json")])
    assert keep.pack(root.parent, file) == finished == 6
    assert keep.unpack(file, tmp_path / "again") == finished
    (first,), (again,) = (build(path, tables_only=True) for path in (root, tmp_path / "again" / root.name))
    assert first["claims"]
    told = {key for key in first if first[key] != again[key]}
    assert told <= {"problems", "n_planned", "words"}, "plan.json is not kept"
    next((tmp_path / "again" / root.name).glob("*/result.json")).parent.rename(tmp_path / "moved")
    assert keep.unpack(file, tmp_path / "again") == 1, "a run that is there stays as it is"


def test_a_part_grows_and_no_run_of_it_changes(study, tmp_path):
    keep, file, one = study("keep"), tmp_path / "part.parquet", small(tmp_path / "one")
    keep.pack(one.parent, file)
    ablation(tmp_path / "one")
    assert (n := keep.pack(one.parent, file)) > 6
    failed = next((tmp_path / "one" / "ablation").glob("*/result.json"))
    failed.write_text(failed.read_text().replace("finished", "failed"))
    assert keep.pack(one.parent, tmp_path / "other.parquet") == n - 1, "what failed has no outcome"
    result = next(one.glob("*/result.json"))
    result.write_text(result.read_text().replace("gain", "gone"))
    with pytest.raises(ValueError, match="allowed: each run once"):
        keep.pack(one.parent, file)


@pytest.mark.parametrize("recipe", sorted((ROOT / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_study_plans_runs_on_the_plans_seeds(recipe):
    seeds = {
        "study_a": range(12, 16),
        "study_a_batch": range(12, 16),
        "study_c": range(100, 136),
        "study_d_64": range(40, 44),
        "study_e": range(50, 56),
        "study_hard_pilot": range(900, 904),
    }
    found = runs_of(f"../study/{recipe.stem}")
    assert {run.seed for run in found} == {*seeds[recipe.stem]}
    assert {run.recipe.steps for run in found} == {120 if recipe.stem == "study_hard_pilot" else 60}


RATES = {"quarter": 2.5e-4, "half": 5e-4, "once": 1e-3, "twice": 2e-3, "four": 4e-3}


def grid_of(gain):
    """Runs of part A: gain by exponent, rank and rate, the same of two seeds."""
    cells = itertools.product(("constant", "sqrt", "proportional"), (1, 32, 256), RATES.items(), (12, 13))
    rows = [(f"{name}_{rate}", rank, lr, seed, gain(name, rank, lr)) for name, rank, (rate, lr), seed in cells]
    return pd.DataFrame(rows, columns=["arm", "rank", "lr", "seed", "gain"]).assign(sweep="study_a")


def test_the_power_of_rank_in_the_best_rate_is_fitted_seed_by_seed(study):
    best = {"constant": {1: 1e-3, 32: 1e-3, 256: 1e-3}, "sqrt": {1: 2e-3, 32: 1e-3, 256: 1e-3}}
    table = grid_of(lambda name, rank, lr: -abs(lr - best.get(name, {1: 4e-3, 32: 1e-3, 256: 5e-4})[rank]))
    slopes = study("part_a").slopes
    assert slopes(table, "constant").tolist() == pytest.approx([0, 0])
    assert (study("part_a").at_edge(table, "constant"), study("part_a").at_edge(table, "proportional")) == (0, 2)
    assert [row.verdict for row in study("part_a").powers(table)] == ["stands", "refuted", "refuted"]
    unfinished = study("part_a").grid(table.iloc[:-1])
    assert set(unfinished["rank"]) == {1, 32}, "a rank whose runs are not all there would have a best rate by luck"
    more = table[table["rank"] == 1].tail(1).assign(arm="proportional_eight")
    assert set(study("part_a").grid(pd.concat([table, more]))["rank"]) == {1, 32, 256}, "a rank may have more rates"
    # of the rate's log2 (2, 0, -1) on the rank's (0, 5, 8): (-65 - 2 - 44) / 9 over 294 / 9
    assert slopes(table, "proportional").tolist() == pytest.approx([-111 / 294] * 2)


def test_runs_of_rank_32_stand_for_all_exponents_of_alpha(study):
    table = grid_of(lambda name, rank, lr: lr * rank + 7 * (name == "sqrt"))
    once = table[(table["rank"] != 32) | table["arm"].str.startswith("constant_")]
    found = study("part_a").grid(once)
    assert len(found) == 90
    at_32 = found[found["rank"] == 32].pivot_table(index=["lr", "seed"], columns="exponent", values="gain")
    assert (at_32["sqrt"] == at_32["constant"]).all(), "not run, so as the other"
    assert (at_32["proportional"] == at_32["constant"]).all()
    pd.testing.assert_frame_equal(study("part_a").grid(table).drop(columns="exponent"), table, check_like=True)


def test_differences_are_of_the_same_seeds_and_a_diverged_run_has_lost_its_base(study):
    table = pd.DataFrame({"seed": [1, 2, 3, 1, 2], "arm": list("aaabb"), "gain": [0.3, 0.5, 9.0, 0.1, 0.2]})
    found = study("runs").difference(table, table["arm"] == "a", table["arm"] == "b")
    assert (found.n, found.mean) == (2, pytest.approx(0.25))
    assert found.low == pytest.approx(0.25 - 12.7062 * 0.05, abs=1e-3)
    assert study("runs").mean_interval([0.2, 0.3], family=2).low == pytest.approx(0.25 - 25.4517 * 0.05, abs=1e-3)
    texts = {"result_json": '{"status": "diverged", "base_score": 0.25, "gain": 0.1, "arm": "", "rank": 1, "seed": 0,'}
    texts["result_json"] += ' "batch_size": 16, "tokens_total": 5}'
    texts["metrics_jsonl"] = '{"step": 1, "accuracy": 0.5}\n{"step": 2}\n'
    texts["run_yaml"] = "derived: {lr: {value: 1}, alpha: {value: 2}}"
    row = study("runs")._row({"sweep": "s", **texts})
    assert row["gain"] == -0.25
    assert row["accuracy_S"] == [0.5, pytest.approx(float("nan"), nan_ok=True)]


def test_what_rank_1_loses_more_in_a_larger_batch_is_taken_seed_by_seed(study):
    small = grid_of(lambda name, rank, lr: 0.3)
    rows = [
        ("study_a_batch", f"{kept}_{rate}", rank, seed, 0.3 - (0.06 + 0.02 * seed if rank == 1 else 0.05))
        for kept, rate, rank, seed in itertools.product(("minibatch", "updates"), ("once", "twice"), (1, 32), (12, 13))
    ]
    large = pd.DataFrame(rows, columns=["sweep", "arm", "rank", "seed", "gain"])
    found = study("part_a").batches(pd.concat([small, large]))
    assert [row.hypothesis for row in found] == ["H4", *["beside H4"] * 3]
    assert found[0].found.mean == pytest.approx(0.01 + 0.02 * 12.5)
    assert found[0].verdict == "stands"
    assert study("part_a").batches(small) == []


def runs_with(sweep, gains, rank=1, **more):
    """Runs of a sweep, a seed for every gain of an arm."""
    fixed = {"sweep": sweep, "rank": rank, "batch_size": 16, "status": "finished", "base_score": 0.25, "steps": 60}
    fixed |= {"trainable_params": 100, "base_params": 1000, "tokens_total": 10, "lr": 1e-3}
    fixed |= {"accuracy_S": [0.01 * step for step in range(60)], **more}
    return [
        {**fixed, "arm": arm, "seed": seed, "gain": gain, "best_score": gain + 0.27, "final_score": gain + 0.25}
        for arm, values in gains.items()
        for seed, gain in enumerate(values)
    ]


def test_part_b_holds_every_arm_against_the_default_of_its_own_ablation(study):
    rows = runs_with("ablate_init", {"off": [0.20, 0.22, 0.24], "on": [0.30, 0.32, 0.343]})
    rows += runs_with("ablate_variance", {"off": [0.2, 0.2, 0.2], "group_mean": [0.1, 0.11, 0.12]})
    rows += runs_with("ablate_variance", {"fewer_samples": [0.3, 0.312, 0.32]})
    rows += runs_with("ablate_init", {"off": [0.9], "on": [0.9]}, rank=32)
    found = {row.what: row for row in study("part_b").verdicts(pd.DataFrame(rows))}
    assert found["init: on minus off"].found.mean == pytest.approx(0.101)
    assert found["variance: fewer_samples minus off"].found.mean == pytest.approx(0.11067, abs=1e-4)
    assert found["32 prompts x 4 samples minus 16 x 8"].found.mean == pytest.approx(0.20067, abs=1e-4)
    assert {row.hypothesis for row in found.values()} == {"H5", "H6", "beside H6"}
    assert found["init: on minus off"].verdict == "refuted", "an initialisation that helps by more than .02 refutes H6"
    assert found["32 prompts x 4 samples minus 16 x 8"].verdict == "stands"
    few = pd.DataFrame(rows + runs_with("ablate_init", {"on_eva": [0.1]}))
    found = {row.what: row for row in study("part_b").verdicts(few)}
    assert found["init: on_eva minus off"].found.n == 1, "an arm with few seeds stays in the table"
    settings = runs_with("ablate_init_twice", {"off": [0.1, 0.12], "on": [0.1, 0.13]})
    settings += runs_with("ablate_init_hard", {"off": [0.1, 0.12]}) + runs_with(
        "low_rank_hard", {"": [0.2, 0.3]}, rank=32
    )
    found = [
        row
        for row in study("part_b").verdicts(pd.DataFrame(rows + settings))
        if "rate" in row.what or "hard" in row.what
    ]
    assert [(row.hypothesis, row.what) for row in found] == [
        ("beside H6", "the default at rank 1 minus rank 32 on nano-hard"),
        ("beside H6", "init at twice the rate: on minus off"),
    ]
    assert [row.found.mean for row in found] == pytest.approx([-0.14, 0.005])
    rows[-1]["average_score"] = rows[-3]["average_score"] = None
    rows[0]["average_score"], rows[0]["base_score"] = 0.5, 0.25
    assert study("part_b").arms(pd.DataFrame(rows))["gain"].iloc[0] == pytest.approx(0.25)


def test_part_c_takes_its_two_claims_from_the_reports(study):
    seeds = range(36)
    near, far = [0.3 + 0.001 * (seed % 3) for seed in seeds], [0.2 + 0.001 * (seed % 5) for seed in seeds]
    rows = runs_with("c_nano", {"": near}) + runs_with("c_nano", {"": [0.3 + 0.002 * (s % 2) for s in seeds]}, rank=32)
    rows += runs_with("c_hard", {"": far}) + runs_with("c_hard", {"": near}, rank=32)
    found = {row.what: row for row in study("part_c").verdicts(pd.DataFrame(rows))}
    assert found["c_nano, rank 1: mean gain below that of the better rank"].verdict == "stands"
    assert found["c_hard, rank 1: mean gain below that of the better rank"].verdict == "refuted"
    risk = found["c_hard, rank 1: share of runs below the base"]
    assert (risk.verdict, risk.found.mean, risk.found.n) == ("stands", 0, 36)
    assert found["c_hard: gain of rank 1 minus rank 32"].found.mean == pytest.approx(-0.099, abs=1e-3)
    steps = found["c_hard: share of steps at which rank 32 first trained as well as rank 1 at last, means over 10"]
    assert steps.found.mean == 1
    alone = study("part_c").claimed(pd.DataFrame(runs_with("c_nano", {"": near})))
    assert [row.verdict for row in alone] == ["open", "stands"], "a claim that was not made is open"
    halves = pd.Series([0.0, 1.0, 2.0]), pd.Series([0.0, 2.0, 4.0])
    ratio = study("runs").spread_ratio(*halves)
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((0.5, 0.5 / 39**0.5, 0.5 * 39**0.5))


def test_rank_1_is_as_far_as_the_step_at_which_rank_32_trained_as_well(study):
    steps = range(1, 41)
    slow, fast = (pd.Series([[slope * step for step in steps]] * 3, index=[7, 8, 9]) for slope in (0.01, 0.02))
    found = study("part_c").steps_to(slow, fast)
    assert tuple(found) == pytest.approx((3, 0.575, 0.575, 0.575)), "mean of steps 31 to 40 at half the slope: step 23"
    assert study("part_c").steps_to(slow, fast, window_steps=1).mean == pytest.approx(0.5)
    assert study("part_c").steps_to(fast, slow).mean == pytest.approx(float("nan"), nan_ok=True), "never there"
    broken = pd.concat([fast, pd.Series([[0.1] * 7, [float("nan")] * 40], index=[10, 11])])
    assert study("part_c").steps_to(pd.concat([slow, slow.set_axis([10, 11, 12])]), broken).n == 3
    assert study("part_c").steps_to(slow[:1], fast[:1]).n == 1, "no interval, and no error"


def test_runs_beside_a_confirmed_sweep_are_paired_with_it_and_no_claim_of_h7(study):
    rows = runs_with("c", {"": [0.3, 0.31, 0.32]}) + runs_with("c", {"": [0.4, 0.4, 0.43]}, rank=32)
    rows += runs_with("c_default", {"": [0.2, 0.22, 0.21]}) + runs_with("c_longer", {"": [0.41, 0.42]})
    found = {row.what: row for row in study("part_c").verdicts(pd.DataFrame(rows))}
    assert found["c: the recipe minus the default, both at rank 1"].found.mean == pytest.approx(0.1)
    assert found["c: the default at rank 1 minus rank 32"].found.mean == pytest.approx(-0.2)
    longer = found["c: rank 1 with half as many steps again, minus rank 32"].found
    assert (longer.n, longer.mean) == (2, pytest.approx(0.015))
    assert not any(what.startswith(("c_default", "c_longer")) for what in found)
    (panel,) = study("part_c").gain_of_every_seed(pd.DataFrame(rows)).axes
    assert panel.get_title() == "c"


def test_part_d_says_what_the_choice_of_a_checkpoint_adds(study):
    rows = runs_with("tail", {"off": [0.20, 0.24], "rlmo": [0.21, 0.23]})
    rows += runs_with("tail_inherited", {"off": [0.1, 0.3]})
    rows[0]["best_score"] += 0.004
    found = {row.what: row for row in study("part_d").verdicts(pd.DataFrame(rows))}
    assert found["measured rate: rlmo minus off, rank 1, batch 16"].found.mean == pytest.approx(0)
    chosen = found["measured rate: off, rank 1, batch 16: best checkpoint minus last one"].found
    assert (chosen.n, chosen.mean) == (2, pytest.approx(0.022))
    frozen = "on_olora_tail_own_frozen"
    rows += runs_with("tail_inherited", {frozen: [0.1, 0.26]})
    higher = runs_with("study_d_four", {"off": [0.1, 0.21], frozen: [0.2, 0.41]})
    twin = runs_with("tail", {"rlmo_own_frozen": [0.3, 0.4]})
    found = {row.what: row for row in study("part_d").verdicts(pd.DataFrame(rows))}
    both = {row.what: row for row in study("part_d").verdicts(pd.DataFrame([*rows, *higher, *twin]))}
    alone = {row.what: row.found.mean for row in both.values() if row.hypothesis == "singly"}
    assert alone[f"from 1e-3 to 4e-3: {frozen} minus off, rank 1"] == pytest.approx(0.17)
    assert alone[f"{frozen} minus off, both at 4e-3, rank 1"] == pytest.approx(0.15)
    assert str({what: row for what, row in both.items() if what not in alone}) == str(found), (
        "no registered interval changes"
    )
    same = found["rate of 1e-3: off, rank 1, batch 16: best checkpoint minus last one"]
    assert (same.found.mean, same.verdict) == (pytest.approx(0.02), "") and np.isnan(same.found.low), (
        "no width, no interval"
    )


@pytest.mark.parametrize(
    ("added", "word"), [([0, 0.0004], "refuted"), ([0.02, 0.0201], "stands"), ([0.009, 0.012], "open")]
)
def test_the_choice_of_a_checkpoint_falls_with_the_mean_over_arms(study, added, word):
    rows = runs_with("tail", {"off": [0.20, 0.24], "rlmo": [0.21, 0.23], "kaiming_frozen": [0.1, 0.12]})
    for row in rows:
        row["best_score"] = row["final_score"] + added[row["seed"]]
    mean, *each = study("part_d").choice(pd.DataFrame(rows))
    assert (mean.verdict, mean.found.mean, len(each)) == (word, pytest.approx(sum(added) / 2), 3)


def test_part_e_names_the_parameters_beside_every_difference(study):
    ways = {"measured": [0.2, 0.201], "lot": [0.1, 0.1015], "reversed": [0.05, 0.0505]}
    gains = {f"{budget}_{way}": values for budget in ("half", "quarter") for way, values in ways.items()}
    rows = runs_with("study_e", gains, trainable_params=25) + runs_with("study_e", {"uniform": [0.3, 0.31]})
    found = {row.what: row for row in study("part_e").verdicts(pd.DataFrame(rows))}
    best = found["quarter_measured minus quarter_lot, parameters x 1.00"]
    assert (best.hypothesis, best.verdict, best.found.mean) == ("H9", "stands", pytest.approx(0.09975))
    larger = [row | {"trainable_params": 30} if row["arm"] == "quarter_measured" else row for row in rows]
    assert study("part_e").where_it_matters(pd.DataFrame(larger)) == "open", "it is the larger adapter"
    beaten = [row | {"gain": 0.2} if row["arm"] == "quarter_reversed" else row for row in rows]
    assert study("part_e").where_it_matters(pd.DataFrame(beaten)) == "open", "by lot is below it, reversed is not"
    lost = [row | {"gain": 0.0} if row["arm"] == "quarter_measured" else row for row in rows]
    assert study("part_e").where_it_matters(pd.DataFrame(lost)) == "refuted"
    edge = found["half_lot minus rank 1, parameters x 0.25"]
    assert (edge.hypothesis, edge.found.mean) == ("edge", pytest.approx(-0.20425))
    assert found["sd over seeds of half_measured, over that of rank 1"].found.mean == pytest.approx(0.1)


def test_the_check_of_direction_pairs_its_seeds(study):
    rows = runs_with("smollm2", {"": [0.2, 0.3]}) + runs_with("smollm2", {"": [0.25, 0.31]}, rank=32)
    found = {row.what: row.found.mean for row in study("part_smollm2").verdicts(pd.DataFrame(rows))}
    assert found == pytest.approx(
        {
            "gain of rank 1": 0.25,
            "share of runs of rank 1 below the base": 0,
            "gain of rank 32": 0.28,
            "share of runs of rank 32 below the base": 0,
            "gain of rank 1 minus rank 32": -0.03,
            "sd over seeds of rank 1, over that of rank 32": 0.1 / 0.06,
        }
    )
    half = pd.DataFrame(rows + runs_with("smollm2_half", {"": [-0.05, 0.15]}))
    found = {row.what: row.found for row in study("part_smollm2").verdicts(half)}
    below = found["share of runs of rank 1 at half the rate below the base"]
    assert below == pytest.approx((2, 0.5, 1 - 0.975**0.5, 0.975**0.5)), "the exact interval of one in two"
    assert found["gain of rank 1 at half the rate minus rank 1"].mean == pytest.approx(-0.2)
    assert found["sd over seeds of rank 1 at half the rate, over that of rank 1"].mean == pytest.approx(2)


def test_a_hypothesis_of_several_cases_is_refuted_by_one_and_stands_by_all(study):
    overall, verdict = study("runs").overall, study("runs").verdict
    assert [overall(words) for words in (["stands", "refuted"], ["stands", "open"], ["stands"])] == [
        "refuted",
        "open",
        "stands",
    ]
    nan = float("nan")
    assert verdict(nan > 0, nan < 0) == "open", "an unknown interval decides nothing"


def test_a_figure_of_each_part_draws(study):
    rows = runs_with("ablate_init", {"off": [0.20, 0.22], "on": [0.30, 0.33]})
    tail = runs_with("tail", {"off": [0.20, 0.24], "rlmo": [0.21, 0.23]})
    edge = runs_with("study_e", {"uniform": [0.3, 0.31], "half_lot": [0.2, 0.22], "only_q": [0.1, 0.13]})
    words = [
        [text.get_text() for axes in draw(pd.DataFrame(table)).axes for text in axes.get_yticklabels() + axes.texts]
        for draw, table in (
            (study("part_b").arms_against_off, rows),
            (study("part_d").tail_against_off, tail),
            (study("part_e").gain_by_parameters, edge),
        )
    ]
    assert "on (2)" in words[0]
    assert "rlmo" in words[1]
    assert "q" in words[2]
    confirmed = runs_with("nano", {"": [0.1, 0.2]}) + runs_with("nano", {"": [0.1, 0.3]}, rank=32)
    (panel,) = study("part_c").gain_of_every_seed(pd.DataFrame(confirmed)).axes
    assert [line.get_xdata().tolist() for line in panel.get_lines()[:2]] == [[0.1, 0.2], [0.1, 0.3]]
