"""Two sweeps side by side."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from records import drawn, grid, write_all
from scipy import stats

from rankrl.cli import main

RANKS = "ranks=[1,8]", "seeds=[0,1,2,3,4,5]"


def written(root, name, gain, recipe="low_rank", *more):
    """A sweep of two ranks and six seeds, with this mean gain."""
    runs = grid(name, recipe, "batch_sizes=[16]", "steps=20", *RANKS, *more)
    return write_all(
        root / name, runs, drawn(runs, dict.fromkeys({run.arm for run in runs}, gain), 0.01, seed=len(name))
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    return written(root, "before", 0.10), written(root, "after", 0.14)


def found(ours, theirs, capsys, *more):
    assert main(["report", str(ours), "--against", str(theirs), *more]) == 0
    return json.loads((ours / "report" / "against.json").read_text()), capsys.readouterr().out


def gains(sweep, rank):
    """Gains of the seeds of a rank."""
    return np.array([json.loads((sweep / f"r{rank}-b16-s{s}" / "result.json").read_text())["gain"] for s in range(6)])


def rename(sweep, arm):
    """Makes the runs of a sweep those of an arm."""
    for run in sweep.glob("r[0-9]*"):
        (run / "run.yaml").unlink()
        content = json.loads((run / "result.json").read_text())
        content |= {"arm": arm, "run_id": f"{arm}-{run.name}"}
        (run / "result.json").write_text(json.dumps(content))
        run.rename(sweep / f"{arm}-{run.name}")
    (sweep / "plan.json").unlink(missing_ok=True)


def test_runs_of_one_cell_and_seed_are_paired(two, capsys):
    before, after = two
    content, text = found(after, before, capsys)
    assert content["sweeps"] == ["after", "before"] and (content["n_pairs"], content["unpaired"]) == (12, [0, 0])
    assert [(row["rank"], row["n_pairs"]) for row in content["rows"]] == [(1, 6), (8, 6), (None, 12)]
    means = [gains(after, rank) - gains(before, rank) for rank in (1, 8)]
    whole = np.mean(means, axis=0)
    assert [row["mean_difference"] for row in content["rows"]] == pytest.approx([*np.mean(means, axis=1), whole.mean()])
    alone = stats.ttest_1samp(whole, 0)
    assert content["rows"][2]["difference_ci95"] == pytest.approx(list(alone.confidence_interval(0.95)))
    # half of the error of 5 % is for all cells together
    assert content["rows"][2]["family_ci95"] == pytest.approx(list(alone.confidence_interval(0.975)))
    (below,) = [row for row in content["claims"] if row["kind"] == "below" and row["supported"]][-1:]
    assert below["subject"] == {"arm": None, "rank": None, "sweep": "before"}
    assert below["than"] == {"arm": None, "rank": None, "sweep": "after"}
    assert {row["family"] for row in content["claims"]} == {3}
    assert f"Over 12 pairs of runs of one cell and seed, after is above before: difference {whole.mean():+.3f}" in text


def test_a_copy_is_the_same(two, tmp_path, capsys):
    """Nothing differs, so nothing is claimed; equal names are told apart by their directories."""
    before, _ = two
    shutil.copytree(before, tmp_path / "before")
    content, text = found(before, tmp_path / "before", capsys)
    assert content["sweeps"] == [str(before), str(tmp_path / "before")]
    assert not any(row["supported"] for row in content["claims"]) and "cannot be told apart" in text


def test_runs_without_a_partner_are_left_out_and_named(two, tmp_path, capsys):
    before, _ = two
    short = written(tmp_path, "short", 0.14)
    shutil.rmtree(short / "r1-b16-s5")
    failed = json.loads((short / "r8-b16-s0" / "result.json").read_text())
    failed |= {"status": "failed", "final_score": None, "best_score": None, "gain": None}
    (short / "r8-b16-s0" / "result.json").write_text(json.dumps(failed))
    content, text = found(before, short, capsys)
    assert (content["n_pairs"], content["unpaired"], content["failed"]) == (10, [2, 0], [0, 1])
    assert "Left out, since the other sweep has no such run with a score: before: 2." in text
    assert "Failed, and missing here: short: 1." in text


def test_one_arm_each_is_paired_whatever_its_name(two, tmp_path, capsys):
    before, _ = two
    named = written(tmp_path, "named", 0.14)
    rename(named, "new")
    content, _ = found(named, before, capsys)
    assert content["n_pairs"] == 12


def diverge(sweep, run):
    path = sweep / run / "result.json"
    gone = {"status": "diverged", "final_score": None, "best_score": None, "gain": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | gone))


@pytest.mark.parametrize("arms", [("", ""), ("on", "off")])
def test_nothing_is_claimed_in_favour_of_survivors(tmp_path, capsys, arms):
    """Two of rank 1's runs of one sweep diverged; the others are above."""
    paths = []
    for name, arm, gain in (("first", arms[0], 0.10), ("second", arms[1], 0.30)):
        root = written(tmp_path, name, gain)
        rename(root, arm) if arm else None
        paths.append(root)
    first, second = paths
    for seed in (0, 2):
        diverge(second, f"{arms[1]}{'-' if arms[1] else ''}r1-b16-s{seed}")
    content, text = found(first, second, capsys)
    rows = {row["rank"]: row["verdict"] for row in content["rows"]}
    assert rows == {1: "inconclusive", 8: "lower", None: "inconclusive"}
    supported = [(row["kind"], row["subject"]["rank"]) for row in content["claims"] if row["supported"]]
    assert supported == [("below", 8)]
    assert "are not compared: runs diverged" in text and "Diverged, and without a partner here: second: 2." in text
    content, _ = found(second, first, capsys)
    assert [row["supported"] for row in content["claims"] if row["subject"]["rank"] != 8] == [False] * 6


@pytest.mark.parametrize(
    "other, says",
    [
        ("two", "--against: got '.*', allowed: the directory of one sweep"),
        ("elsewhere", "allowed: a sweep with a run of the arm, rank, batch size and seed of one of before"),
        ("missing", "allowed: an existing runs directory"),
        ("itself", "allowed: another sweep than DIR"),
    ],
)
def test_what_cannot_be_compared_is_refused(two, tmp_path, capsys, other, says):
    before, _ = two
    written(tmp_path / "elsewhere", "other", 0.1, "low_rank", "seeds=[7,8]")
    paths = {"two": before.parent, "elsewhere": tmp_path / "elsewhere" / "other", "itself": before}
    assert main(["report", str(before), "--against", str(paths.get(other, tmp_path / "none"))]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_cell_with_few_pairs_is_left_out(tmp_path, capsys):
    first, second = written(tmp_path, "first", 0.1), written(tmp_path, "second", 0.3)
    for seed in range(4):
        shutil.rmtree(second / f"r1-b16-s{seed}")
    content, text = found(first, second, capsys)
    assert [row["rank"] for row in content["rows"]] == [8, None] and content["n_short_cells"] == 1
    assert "Cells with less than two thirds of the pairs of others take no part." in text
