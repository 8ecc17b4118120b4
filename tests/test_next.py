"""Which cells get the next seeds: literal allocations, the error rate of the stopping rule, and
stages that follow from the records on disk."""

import json
from contextlib import nullcontext
from math import inf

import numpy as np
import pytest
from conftest import runs_of
from records import Grown, drawn, result, small, write_run
from test_stats import plain

from rankrl.cli import main
from rankrl.report.ledger import ledger, write_plan
from rankrl.report.planned import read_plan
from rankrl.report.read import read_sweep
from rankrl.report.statistics.sequential import below, deal, half_sequence, ocba, propose, propose_more
from rankrl.report.summary import sweep_summary
from rankrl.sweep import local
from rankrl.sweep.stages import keep_back, next_stage
from rankrl.sweep.tasks import left, print_tasks


def test_ocba_by_hand():
    """With equal sds and distances 0.1 and 0.2 to the best, the weights of the others are 4 and 1,
    and that of the best is sqrt(4^2 + 1)."""
    shares = ocba([0.3, 0.2, 0.1], [0.02, 0.02, 0.02], 100)
    assert shares == pytest.approx([100 * w / (5 + 17**0.5) for w in (17**0.5, 4, 1)])
    noisy = ocba([0.3, 0.2, 0.2], [0.02, 0.04, 0.02], 90)
    assert noisy[1] / noisy[2] == pytest.approx(4)
    assert ocba([0.1], [0.02], 5) == [5]


def test_the_confidence_sequence_by_hand():
    """For n = 6: the ratio is (sqrt(7)/0.05)^(1/3) = 3.754, x = 2.754/(1 - 0.5363), and
    t = sqrt(5 x) = 5.449 (a t interval has 2.571)."""
    assert half_sequence(1.0, 6, 0.05) == pytest.approx(5.449 / 6**0.5, abs=2e-3)
    assert half_sequence(1.0, 2, 0.05) == inf
    assert half_sequence(0.0, 6, 0.05) == inf


def test_the_confidence_sequence_holds_at_every_look():
    """Of 800 sequences of up to 40 seeds, each checked after every seed, at most 5 % ever miss the
    mean (plus three standard errors)."""
    draws, missed = np.random.default_rng(0).normal(0, 1, (800, 40)), np.zeros(800, dtype=bool)
    for n in range(2, 41):
        unit = half_sequence(1.0, n, 0.05)
        missed |= abs(draws[:, :n].mean(1)) > unit * draws[:, :n].std(1, ddof=1)
    assert missed.mean() <= 0.05 + 3 * 0.0077


def test_seeds_go_where_they_are_lacking():
    assert deal([2.5, 0.2, 0.9], [9, 9, 9], 4) == [2, 0, 1] or sum(deal([2.5, 0.2, 0.9], [9, 9, 9], 4)) == 4
    assert deal([5.0, 1.0], [2, 9], 4) == [2, 2]
    assert deal([1.0], [0], 4) == [0]


def test_a_proposal_names_cells_seeds_and_reasons():
    close = plain([0.20, 0.24, 0.21], 8) + plain([0.23, 0.21, 0.25], 32)
    far = plain([0.00, 0.03, 0.01], 1)
    found = propose(far + close, 4)
    assert not found["stop"]
    assert sum(row["add"] for row in found["cells"]) == 4
    assert {row["rank"] for row in found["cells"]} == {8, 32}
    assert found["cells"][0]["seeds"] == [3, 4][: found["cells"][0]["add"]]
    assert propose(far + close, 4, [0, 1, 2])["stop"]
    later = [run | {"seed": run["seed"] + 20} for run in close]
    assert propose(later, 4)["cells"][0]["seeds"] == [23, 24][: found["cells"][0]["add"]]
    assert [row["seeds"] for row in propose_more(later, 4, [23])["cells"]] == [[24, 25], [24, 25]]


def test_it_stops_when_one_cell_is_above_all():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.05, 8)
    low, high = plain(shared + rng.normal(0, 0.005, 8), 1), plain(0.2 + shared + rng.normal(0, 0.005, 8), 32)
    assert below(low + high) == {("", 1, 16): pytest.approx(below(low + high)["", 1, 16])}
    found = propose(low + high, 5)
    assert (found["stop"], found["why"]) == (True, "rank 32, batch 16 is above every other cell")


def test_a_budget_below_one_is_refused_in_one_line(tmp_path, capsys):
    small(tmp_path)
    assert main(["next", str(tmp_path), "--budget", "0"]) == 2
    assert capsys.readouterr().err == "rankrl: --budget: got 0, allowed: a number of runs, at least 1\n"
    assert main(["next", str(tmp_path), "--budget", "3", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["small"]["cells"]
    assert sum(row["add"] for row in cells) == 3 and all(min(row["seeds"]) == 2 for row in cells)


@pytest.mark.slow
def test_stages_follow_from_what_lies_on_disk(tmp_path):
    """First 3 seeds in 6 cells, then stages of 6 runs with seeds 3 to 11, then the seeds that were
    held back, then nothing."""
    runs = runs_of("seeds")
    root = tmp_path / "seeds"
    grown = drawn(runs, {"": 0.1}, 0.005)
    grown |= {run.run_id: Grown(0.3 + 0.0002 * (run.seed % 7), 10, 1.0) for run in runs if run.rank == 32}
    sizes, kept_back = [], []
    for _ in range(20):
        now, why = next_stage(runs, root)
        if not now:
            break
        assert next_stage(runs, root) == (now, why)
        write_plan(root, now)
        half = now[: len(now) // 2]
        for run in half:
            write_run(root / run.run_id, run, grown[run.run_id], items=0)
        again, left_why = next_stage(runs, root)  # if killed half way, the same stage continues
        assert {run.run_id for run in now} <= {run.run_id for run in again} and "are left" in left_why
        for run in now[len(half) :]:
            write_run(root / run.run_id, run, grown[run.run_id], items=0)
        sizes.append(len(now))
        kept_back += [run for run in now if run.seed >= 100]
    assert sizes[0] == 18 and set(sizes[1:-1]) == {6} and len(sizes) > 2
    assert {(run.rank, run.seed) for run in kept_back} == {(32, seed) for seed in (100, 101, 102, 103)}
    assert why == "all stages are done, the confirmation too" and next_stage(runs, root)[0] == []
    assert len(read_plan(root)) == sum(sizes)
    keep_back(runs, root)
    summary = sweep_summary(read_sweep(root))
    (fresh,) = summary["confirmation"]
    assert "On fresh seeds, which chose nothing, rank 32, batch 16: +0.301" in " ".join(summary["words"])
    assert any("not corrected for the looking" in text for text in summary["words"])
    assert (fresh["rank"], fresh["n_seeds"], fresh["mean_gain"]) == (32, 4, pytest.approx(0.3 + 0.0002 * 3.5))
    assert left([run for run in runs if run.run_id in read_plan(root)], root)[0] == []


@pytest.mark.parametrize(
    "words, says",
    [("stages.first=1", "stages.first"), ("stages.confirm=13", "stages: got"), ("stages.add=0", "stages.add")],
)
def test_stages_that_cannot_be_are_refused(words, says):
    with pytest.raises(ValueError, match=says):
        runs_of("seeds", words)


def test_a_failed_run_is_an_outcome_of_its_stage(tmp_path):
    runs = runs_of("seeds", "ranks=[1,32]")
    now, _ = next_stage(runs, tmp_path)
    write_plan(tmp_path, now)
    for run in now:
        directory = write_run(tmp_path / run.run_id, run, Grown(0.1 + 0.01 * run.seed, 10, 1.0), items=0)
    (directory / "result.json").write_text(json.dumps(result(now[-1], Grown(0.1, 10, 1.0), "failed")))
    then, why = next_stage(runs, tmp_path)
    assert why.startswith("next stage") and len(then) == 6


def test_each_submission_gives_out_a_stage(tmp_path, capsys):
    runs = runs_of("seeds", "ranks=[1,32]", "scale.slurm.runs_per_task=4")
    said = print_tasks(runs, tmp_path)
    root, array, _, *tasks = capsys.readouterr().out.splitlines()
    assert said == "first stage: 3 seeds for every cell; 6 runs: 6 to do"
    assert (root, array.split()[0]) == (str(tmp_path / "seeds"), "--array=0-1")
    assert tasks == ["r1-b16-s0,r1-b16-s1,r1-b16-s2", "r32-b16-s0,r32-b16-s1,r32-b16-s2"]
    for run in runs:
        if run.seed < 3:
            write_run(tmp_path / "seeds" / run.run_id, run, Grown(0.1 + 0.01 * run.seed, 10, 1.0), items=0)
    assert print_tasks(runs, tmp_path).endswith("; 6 runs; 6 runs: 6 to do")
    given = ",".join(capsys.readouterr().out.splitlines()[3:]).split(",")
    assert len(given) == 6 and all(3 <= int(name.split("-s")[1]) < 12 for name in given)
    assert print_tasks(runs, tmp_path) == "6 runs of this stage are left; 12 runs: 6 finished, 6 to do"
    assert ",".join(capsys.readouterr().out.splitlines()[3:]).split(",") == given


def test_runs_of_seeds_that_are_kept_back_choose_nothing(tmp_path):
    """A run of a held-back seed, made by hand before the sweep and far above all others, neither
    ends the stages nor changes which seeds come next."""
    runs = runs_of("seeds", "ranks=[1,32]")
    early = next(run for run in runs if (run.rank, run.seed) == (1, 100))
    write_plan(tmp_path, [early])
    write_run(tmp_path / early.run_id, early, Grown(0.6, 10, 1.0), items=0)
    first, why = next_stage(runs, tmp_path)
    assert why.startswith("first stage") and len(first) == 6
    write_plan(tmp_path, first)
    for run in first:
        write_run(tmp_path / run.run_id, run, Grown(0.1 + 0.01 * run.seed, 10, 1.0), items=0)
    then, why = next_stage(runs, tmp_path)
    assert why.startswith("next stage") and max(run.seed for run in then) < 12


def test_next_asks_and_gives_no_seed_that_is_kept_back():
    plainly = plain([0.20, 0.24, 0.9], 8) + plain([0.23, 0.21], 32)
    found = propose_more(plainly, 3, [2, 3])
    assert {seed for row in found["cells"] for seed in row["seeds"]} <= {4, 5, 6}
    assert {row["n_seeds"] for row in found["cells"]} == {2}


def test_a_result_that_reading_refuses_is_left_to_do(tmp_path):
    """Otherwise the sweep would count it as finished and its stage would never end."""
    runs = small(tmp_path) and runs_of("demo", "name=small")
    path = tmp_path / "small" / "r8-b16-s1" / "result.json"
    path.write_text(path.read_text().replace('"rank": 8', '"rank": "eight"'))
    assert [run.run_id for run in left(runs, tmp_path / "small")[0]] == ["r8-b16-s1"]
    (told,) = [entry for entry in ledger(tmp_path / "small") if entry.state != "finished"]
    assert (told.state, told.note) == ("stopped", "starts again: result.json: rank is 'eight', no count")


@pytest.mark.parametrize(("first", "code"), [("finished", 0), ("failed", 1), (None, 75)])
def test_all_stages_train_on_one_bench(tmp_path, monkeypatch, first, code):
    """Runs end at once, without training. The first run ends as `first` says (None: it is stopped),
    and the exit code after all stages shows it."""
    runs = runs_of("seeds", "ranks=[1,32]")
    grown = drawn(runs, {"": 0.1}, 0.02)

    def train(todo, bench):
        for run in todo:
            content = result(run, grown[run.run_id], first if run is runs[0] else "finished")
            (tmp_path / "seeds" / run.run_id).mkdir(exist_ok=True)
            (tmp_path / "seeds" / run.run_id / "result.json").write_text(json.dumps(content))
        return first is not None

    opened = []
    monkeypatch.setattr(local, "bench_for", lambda left, *_: opened.append(len(left)) or nullcontext("bench"))
    monkeypatch.setattr(local, "_train", train)
    monkeypatch.setattr("rankrl.report.build.build", lambda root: [])
    assert local.sweep(runs, tmp_path) == code
    assert opened == [len(runs)]
    if first is None:
        assert len(read_plan(tmp_path / "seeds")) == 6
        return
    assert len(read_plan(tmp_path / "seeds")) > 6
    assert local.sweep(runs, tmp_path) == code
    assert opened == [len(runs)]  # nothing was left to do


def test_the_outcome_of_a_run_does_not_depend_on_the_plan_file(tmp_path, monkeypatch, capsys):
    """Two `rankrl run` at the same time may each write a plan without the other's run.

    If no run has a score, there is no report, and a message says so.
    """
    runs = runs_of("demo", "ranks=[1]", "seeds=[0]")

    def train(todo, bench):
        (tmp_path / "demo" / "plan.json").write_text("{}")
        lost = {"base_score": None, "final_score": None, "best_score": None, "gain": None, "error": "no GPU"}
        content = result(runs[0], Grown(0.1, 30, 1.0), "failed") | lost
        (tmp_path / "demo" / runs[0].run_id).mkdir(exist_ok=True)
        (tmp_path / "demo" / runs[0].run_id / "result.json").write_text(json.dumps(content))
        return True

    monkeypatch.setattr(local, "bench_for", lambda *_: nullcontext("bench"))
    monkeypatch.setattr(local, "_train", train)
    assert local.sweep(runs, tmp_path, report=False) == 1
    assert local.sweep(runs, tmp_path) == 1
    assert "rankrl: no report: DIR: got" in (said := capsys.readouterr().err) and "no GPU" in said
