"""Statistics with literal numbers, and a page from run directories."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import rankrl
from records import broken, small

from rankrl.cli import main
from rankrl.report.build import build
from rankrl.report.read import SweepRecords, curve, find_sweeps, read_sweep
from rankrl.report.statistics.cells import grouped, summarise, summary
from rankrl.report.statistics.evaluation import Answers, by_source, evaluation, read_answers
from rankrl.report.statistics.intervals import clopper_pearson, t_interval
from rankrl.report.statistics.paired import comparisons
from rankrl.report.statistics.passk import pass_at_k
from rankrl.report.statistics.references import reference_arm
from rankrl.report.summary import sweep_summary
from rankrl.report.valid import result_problem


def result(rank=1, seed=0, gain=0.1, status="finished", batch_size=16, arm="", **more):
    final = None if gain is None else 0.2 + gain
    return {
        "run_id": f"r{rank}-b{batch_size}-s{seed}",
        "arm": arm,
        "rank": rank,
        "batch_size": batch_size,
        "seed": seed,
        "status": status,
        "base_score": 0.2,
        "final_score": final,
        "best_score": final,
        "gain": gain,
        "tokens_total": 2_000_000,
        "steps": 30,
        "wall_s": 10.0,
        "trainable_params": 100 * rank,
        "base_params": 10_000,
        **more,
    }


def test_clopper_pearson_matches_the_published_values():
    assert clopper_pearson(0, 6) == pytest.approx([0, 0.459], abs=5e-4)
    assert clopper_pearson(4, 6) == pytest.approx([0.223, 0.957], abs=5e-4)
    assert clopper_pearson(8, 24) == pytest.approx([0.156, 0.553], abs=5e-4)


def test_t_interval_matches_the_published_cell():
    """Rank 32, batch 16 of the published sweep: mean 0.0855, sd 0.0073, 6 seeds."""
    z = (1.2, 0.6, 0.2, -0.2, -0.6, -1.2)
    unit = (sum(x * x for x in z) / 5) ** 0.5
    assert t_interval([0.0855 + 0.0073 * x / unit for x in z]) == pytest.approx([0.0778, 0.0932], abs=1e-4)
    assert t_interval([0.0, 1.0, 2.0]) == pytest.approx([1 - 2.484, 1 + 2.484], abs=1e-3)  # 4.3027 / sqrt(3)
    assert t_interval([0.1]) is None


def test_a_cell_is_summarised_by_hand():
    row = summarise([result(seed=0, gain=0.1), result(seed=1, gain=0.3), result(seed=2, gain=-0.1)])
    assert row["n_seeds"] == 3
    assert row["mean_gain"] == pytest.approx(0.1)
    assert row["sd_gain"] == pytest.approx(0.2)
    assert row["best_gain"] == pytest.approx(0.3)
    assert row["mean_best_gap"] == pytest.approx(0.2)
    assert row["upside_index"] == pytest.approx(1.0)
    assert (row["negative_runs"], row["negative_gain_risk"]) == (1, pytest.approx(1 / 3))
    assert row["token_efficiency"] == pytest.approx(0.05)


def test_a_diverged_run_is_a_negative_outcome():
    row = summarise([result(gain=0.4), result(gain=None, status="diverged")])
    assert (row["n_seeds"], row["ended_runs"], row["negative_runs"], row["diverged_runs"]) == (2, 1, 1, 1)
    assert (row["mean_gain"], row["gain_ci95"]) == (0.4, None)  # no gain is made up for it
    assert row["diverged_ci95"] == row["risk_ci95"] == pytest.approx([0.0126, 0.9874], abs=1e-4)
    none = summarise([result(gain=None, status="diverged")])
    assert (none["mean_gain"], none["ended_runs"], none["negative_gain_risk"]) == (None, 0, 1.0)


def test_mean_and_interval_weigh_cells_alike():
    """In an unfinished sweep one batch size has more runs. The mean lies in its intervals."""
    rng = np.random.default_rng(4)
    rows = [(16, 0.0, 8), (64, 0.2, 3)]
    runs = [
        result(seed=seed, batch_size=batch, gain=mean + rng.normal(0, 0.005), final_score=0.3)
        for batch, mean, n in rows
        for seed in range(n)
    ]
    row = summarise(runs)
    assert row["mean_gain"] == pytest.approx(0.1, abs=0.005)
    for key in ("gain_ci95", "blocked_ci95"):
        assert sum(row[key]) / 2 == pytest.approx(row["mean_gain"])


def test_a_failed_run_changes_no_other_number(tmp_path):
    """It is missing data, with a count in the first sentence and what it could change at most."""
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.01, 6)
    results = [
        result(rank=rank, seed=seed, gain=mean + effect[seed] + rng.normal(0, 0.005))
        for rank, mean in ((1, 0.0), (32, 0.1))
        for seed in range(6)
    ]
    lost = result(rank=32, seed=6, gain=None, status="failed") | {"final_score": None}
    whole, short = (sweep_summary(SweepRecords("demo", tmp_path, rows, [], [])) for rows in (results, [*results, lost]))
    told = {"answer", "words", "n_failed", "worst_case", "ranks", "cells", "batches", "arms"}
    assert {key: whole[key] for key in whole.keys() - told} == {key: short[key] for key in short.keys() - told}
    for before, after in zip(whole["ranks"], short["ranks"], strict=True):
        assert {**before, "failed_runs": 0} == {**after, "failed_runs": 0}
    assert [row["failed_runs"] for row in short["ranks"]] == [0, 1]
    assert short["answer"][0] == whole["answer"][0] + " Of 13 runs 1 failed: they are missing in all that follows."
    assert short["answer"][1:-1] == whole["answer"][1:] and len(short["words"]) == len(whole["words"]) + 1
    supported, kept = short["worst_case"]["supported"], short["worst_case"]["kept"]
    assert supported > kept >= 0
    assert f"{kept} of the {supported} claims" in short["answer"][-1]


def test_summary_has_the_schema_of_the_contract():
    results = [result(rank=r, batch_size=b, seed=s) for r in (1, 32) for b in (16, 64) for s in (0, 1)]
    statistics = summary(results)
    assert [(c["rank"], c["batch_size"]) for c in statistics["cells"]] == [(1, 16), (1, 64), (32, 16), (32, 64)]
    assert [r["rank"] for r in statistics["ranks"]] == [1, 32]
    assert statistics["footprint"][1] == {
        "rank": 32,
        "trainable_params": 3200,
        "fraction_of_base": 0.32,
        "checkpoint_bytes": 12_800,
        "optimizer_bytes": 25_600,
    }
    keys = {
        "arm",
        "rank",
        "batch_size",
        "n_seeds",
        "mean_gain",
        "sd_gain",
        "gain_ci95",
        "best_gain",
        "mean_best_gap",
        "upside_index",
        "negative_runs",
        "negative_gain_risk",
        "risk_ci95",
        "mean_final_score",
        "mean_tokens",
        "token_efficiency",
    }
    assert keys < set(statistics["cells"][0])
    assert grouped(results, ("arm", "rank"))[0]["n_seeds"] == 4


def test_arms_are_compared_over_common_seeds():
    off = [result(seed=s, gain=g, arm="off") for s, g in ((0, 0.1), (1, 0.2), (2, 0.3))]
    on = [result(seed=s, gain=g, arm="on", trainable_params=99) for s, g in ((0, 0.2), (1, 0.2), (2, 0.5), (3, 0.9))]
    alone = [result(seed=0, rank=4, arm="on")]  # of a cell that `off` lacks
    (row,) = comparisons(off + on + alone)
    assert (row["arm"], row["against"], row["n_pairs"], row["unpaired_seeds"], row["higher"]) == ("on", "off", 3, 1, 2)
    assert row["mean_difference"] == pytest.approx(0.1)
    assert row["difference_ci95"] == pytest.approx([0.1 - 0.2484, 0.1 + 0.2484], abs=1e-4)  # 4.3027 * 0.1 / sqrt(3)
    assert row["pairing"] == pytest.approx(0.8660, abs=1e-4)
    assert row["params_ratio"] == pytest.approx(0.99)
    assert row["tokens_ratio"] == 1
    assert comparisons(off + [run | {"tokens_total": 0} for run in on])[0]["tokens_ratio"] is None  # not recorded
    assert comparisons(off) == []
    (equal,) = comparisons(off + [run | {"arm": "on", "gain": run["gain"] + 0.1} for run in off])
    assert (equal["mean_difference"], equal["difference_ci95"]) == (pytest.approx(0.1), None)
    assert reference_arm(["b", "a"]) == "a"


@pytest.mark.slow
def test_report_of_arms_draws_their_differences_and_ranks(tmp_path):
    for arm in ("off", "on"):
        for seed in (0, 1):
            run = tmp_path / "arms" / f"{arm}-r8-b16-s{seed}"
            (run / "adapter").mkdir(parents=True)
            (run / "result.json").write_text(
                json.dumps(result(8, seed, 0.1 + 0.1 * seed, arm=arm) | {"run_id": run.name})
            )
            ranks = {"model.layers.0.mlp.up_proj": 8, "model.layers.1.mlp.up_proj": 6 + seed if arm == "on" else 8}
            (run / "adapter" / "allocation.json").write_text(
                json.dumps({"modules": [{"module": m, "rank": r} for m, r in ranks.items()]})
            )
    (report,) = build(tmp_path)
    to = tmp_path / "arms" / "report"
    assert report["comparisons"][0]["mean_difference"] == 0
    for name in ("difference_by_arm", "allocation"):
        assert (to / "figures" / f"{name}.svg").exists()
    assert ">6.5</text>" in (to / "figures" / "allocation.svg").read_text().replace("\n", "")
    page = (to / "index.html").read_text()
    assert "against arm off" in page and ">Arms compared</h2>" in page


def test_report_of_run_directories(tmp_path):
    for seed, gain in ((0, 0.1), (1, 0.2), (2, None)):
        run = tmp_path / "demo" / f"r1-b16-s{seed}"
        run.mkdir(parents=True)
        (run / "run.yaml").write_text("rank: 1\n")
        status = "finished" if gain else "failed"
        (run / "result.json").write_text(
            json.dumps(result(seed=seed, gain=gain, status=status, error="" if gain else "<b>&boom"))
        )
        lines = [json.dumps({"step": step, "accuracy": 0.2 + 0.01 * step}) for step in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "accu')  # the last line was cut by a crash
    (tmp_path / "demo" / "r1-b16-s9").mkdir()
    (tmp_path / "demo" / "r1-b16-s9" / "run.yaml").write_text("rank: 1\n")
    planned = {f"r1-b16-s{seed}": 50 for seed in (0, 1, 2, 9, 10)}
    (tmp_path / "demo" / "plan.json").write_text(json.dumps(planned))
    (report,) = build(tmp_path)
    to = tmp_path / "demo" / "report"
    assert (report["ranks"][0]["negative_runs"], report["ranks"][0]["failed_runs"]) == (0, 1)
    assert json.loads((to / "summary.json").read_text())["cells"][0]["n_seeds"] == 2
    assert report["answer"][0].endswith(
        " Of 5 runs 1 failed and 2 have no result: they are missing in all that follows."
    )
    page = (to / "index.html").read_text()
    partial = '<div>partial: begun, and no result.json yet</div></td><td class="n">1</td><td>r1-b16-s9</td>'
    assert partial in page
    assert "5 runs planned: 2 finished, 1 failed, 2 planned." in page
    assert page.count("<td>planned</td>") == 2
    assert "&lt;b&gt;&amp;boom" in page and "<b>&boom" not in page
    for name in ("gain_by_rank", "learning_curves"):
        assert (to / "figures" / f"{name}.svg").exists() and (to / "figures" / f"{name}.png").exists()
    assert (to / "runs.csv").read_text().count("\n") == 4


def test_reporting_nothing_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_pass_at_k_is_unbiased_and_literal():
    assert pass_at_k(16, 4, 1) == pytest.approx(0.25)
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(16, 0, 16) == 0
    assert pass_at_k(16, 1, 16) == 1


@pytest.mark.slow
def test_every_kind_of_damage_is_named_and_none_is_fatal(tmp_path):
    sweep = read_sweep(broken(tmp_path))
    said = {row["run"]: row["problem"] for row in sweep.problems}
    assert [run["run_id"] for run in sweep.results] == [
        *(f"r8-b16-s{seed}" for seed in range(6)),
        *(f"r32-b16-s{seed}" for seed in (2, 3, 4, 5)),
    ]
    assert sweep.n_planned == 18
    assert said["r1-b16-s0"] == "result.json: cut off or no JSON"
    assert said["r1-b16-s1"] == "result.json: nested too deeply"
    assert said["r1-b16-s2"] == "result.json: no text"
    assert said["r1-b16-s3"] == "result.json: NaN is no number"
    assert said["r1-b16-s4"] == "result.json: rank is 'one', no count"
    assert said["r1-b16-s5"] == "result.json: gain is 0.4, and final_score - base_score is 0.1"
    assert said["r32-b16-s0"].startswith("partial")
    assert said["r32-b16-s1"].startswith("missing")
    assert said["r32-b16-s2"] == "metrics.jsonl ends at step none of 30: its curves are incomplete"
    assert said["r32-b16-s4"].startswith("run.yaml is missing or no resolved run")
    assert said["r32-b16-s5 (copy)"] == "duplicate: its result.json is that of r32-b16-s5"
    assert said["r2-b16-s77"].startswith("foreign: not in the plan")
    assert said["r8-b16-s4"].startswith("failed, missing from the statistics: <b>CUDA</b>")
    (damaged,) = read_answers(sweep.directory, sweep.results)[1]
    assert damaged["run"] == "r32-b16-s3"
    (report,) = build(tmp_path / "broken")
    rank_8 = next(row for row in report["ranks"] if row["rank"] == 8)
    assert (rank_8["failed_runs"], rank_8["diverged_runs"], rank_8["negative_runs"]) == (1, 1, 1)
    assert " Of 18 runs 1 failed and 8 have no result: they are missing" in report["answer"][0]
    assert {row["run"] for row in report["problems"]} == {*said, "r32-b16-s3"}


def test_a_mixed_sweep_is_refused_with_what_differs(tmp_path):
    root = small(tmp_path)
    path = root / "r8-b16-s1" / "run.yaml"
    path.write_text(path.read_text().replace("  samples_per_prompt: 8\n", "  samples_per_prompt: 4\n"))
    with pytest.raises(ValueError, match=r"mixes runs.*recipe.samples_per_prompt: '4' here, '8' there") as refused:
        read_sweep(root)
    assert "\n" not in str(refused.value)
    (root / "plan.json").write_text('{"r1-b16-s0": 30}')  # runs that are not in the plan become foreign
    assert [row["run"] for row in read_sweep(root).problems if row["problem"].startswith("foreign")] == ["r8-b16-s1"]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"gain": float("inf")}, "gain is inf, no fraction"),
        ({"rank": True}, "rank is True, no count"),
        ({"seed": 10**400}, "no count"),
        ({"tokens_total": 1.5}, "tokens_total is 1.5, no count"),
        ({"status": "done"}, "status is 'done', none of finished, diverged, failed"),
        ({"gain": None}, "gain is None, no fraction"),
        ({"wall_s": -1}, "wall_s is -1, no duration"),
        ({"arm": ["x"]}, "arm is ['x'], no text"),
        ({"rank": 2}, "run_id is 'r1-b16-s0', and its arm, rank, batch size and seed say r2-b16-s0"),
        ({}, ""),
    ],
)
def test_what_a_result_may_not_say(change, says):
    assert says in result_problem(result() | change)
    assert bool(result_problem(result() | change)) == bool(says)


def test_a_curve_is_thinned_without_reading_every_line(tmp_path):
    lines = [json.dumps({"step": step}) for step in range(1, 501)]
    lines[0] = "\x00"
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    steps = [line["step"] for line in curve(tmp_path)]
    assert len(steps) == 63 and steps[-1] == 500 and steps[0] == 9
    assert [line["step"] for line in curve(tmp_path, 3)] == [251, 500]
    assert curve(tmp_path / "nothing") == []


def test_items_and_seeds_are_told_apart():
    """Two items and two runs of a cell. The mean gains of the items are 0.5 and 0.1, and the base's
    shares are measured with 4 samples."""
    runs = [result(seed=seed) for seed in (0, 1)]
    final, base = np.array([[1.0, 0.5], [0.5, 0.5]]), np.array([0.25, 0.4])
    answers = Answers(runs, ["a", "b"], np.array(["x", "y"]), final, base, 4, 4)
    found = evaluation(answers)
    assert found["item_sd"] == pytest.approx(0.4 / 2**0.5)
    assert found["item_error"] == pytest.approx(0.2)
    assert found["eval_noise_sd"] == pytest.approx((0.1875 / 3 / 2) ** 0.5)  # p(1-p): 0, 0.25, 0.25, 0.25
    assert found["base_error"] == pytest.approx(((0.1875 + 0.24) / 2 / 3 / 2) ** 0.5)
    assert found["seed_sd"] == pytest.approx((0.03125 - 0.1875 / 6) ** 0.5, abs=1e-9)
    assert [(row["source"], round(row["mean_gain"], 3)) for row in by_source(answers)] == [("x", 0.5), ("y", 0.1)]


def test_a_sweep_in_which_no_run_has_a_score_has_no_report(tmp_path, capsys):
    root = small(tmp_path)
    lost = {
        "status": "failed",
        "gain": None,
        "base_score": None,
        "final_score": None,
        "best_score": None,
        "error": "no GPU",
    }
    for path in root.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | lost))
    with pytest.raises(ValueError, match=r"a score; r1-b16-s0: failed, missing from the statistics: no GPU") as refused:
        build(tmp_path)
    assert "\n" not in str(refused.value)
    shutil.copytree(small(tmp_path / "other"), tmp_path / "fine")
    assert [sweep.name for sweep in find_sweeps(tmp_path)] == ["fine"]
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("rankrl: small: left out, no run of it has a score; r1-b16-s0: failed")


@pytest.mark.parametrize("kept", ["metrics.jsonl", ""])
def test_a_run_without_run_yaml_and_result_is_named(tmp_path, kept):
    root = small(tmp_path)
    (root / "plan.json").unlink()
    for file in (root / "r8-b16-s1").iterdir():
        if file.name != kept:
            file.unlink()
    said = [row["problem"] for row in read_sweep(root).problems if row["run"] == "r8-b16-s1"]
    assert said == ["partial: begun, and no result.json yet"]


def test_extreme_records_end_no_report(tmp_path):
    root = small(tmp_path)
    nested = pa.table({"step": [0, 30], "item_id": [["a"], ["a"]], "source": ["x", "x"], "correct": [True, True]})
    pq.write_table(nested, root / "r1-b16-s0" / "evals.parquet")
    for name, change in (("r1-b16-s1", {"wall_s": 1.7e308}), ("r8-b16-s0", {"wall_s": 5e-324})):
        path = root / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change | {"error": {"no": "text"}}))
    (sweep,) = find_sweeps(tmp_path)
    said = {row["run"]: row["problem"] for row in sweep_summary(sweep)["problems"]}
    assert said["r1-b16-s0"].startswith("evals.parquet: ")
    assert said["r1-b16-s1"] == "result.json: wall_s is 1.7e+308, no duration"
    assert "r8-b16-s0" not in said
    assert rankrl("status", str(root)).returncode == 0


def test_a_run_of_an_arm_that_no_planned_run_has_is_named(tmp_path):
    root = small(tmp_path)
    (root / "r8-b16-s1").rename(root / "new-r8-b16-s1")
    path = root / "new-r8-b16-s1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arm": "new", "run_id": "new-r8-b16-s1"}))
    assert {"run": "new-r8-b16-s1", "problem": "not in plan.json; counted"} in read_sweep(root).problems
