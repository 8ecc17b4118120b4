"""A later version of the package, with new keys of all kinds, reads and resumes sweeps of this one.

The later version runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from growing import ask, grown_package
from records import drawn, grid, write_all
from test_history import AS_RECORDED

DEMO = str(ROOT / "recipes" / "demo.yaml")
WORDS = (DEMO, "name=small", "ranks=[1,8]", "seeds=[0,1]")
LARGE = (
    str(ROOT / "recipes" / "low_rank.yaml"),
    "name=large",
    "scale=qwen3-8b",
    "ranks=[4]",
    "seeds=[0,1]",
    "steps=20",
)


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    return grown_package(tmp_path_factory.mktemp("later"))


@pytest.fixture
def small(tmp_path):
    """A sweep recorded by this version at nano, whose data.mixture is null."""
    runs = grid("small", "demo", *WORDS[2:])
    return write_all(tmp_path / "small", runs, drawn(runs, {"": 0.2}, 0.02))


@pytest.fixture
def large(tmp_path):
    """A sweep recorded by this version at a scale with a mixture."""
    runs = grid("large", "low_rank", *LARGE[2:])
    return write_all(tmp_path / "large", runs, drawn(runs, {"": 0.2}, 0.02), items=0)


def test_a_recorded_sweep_is_the_same_sweep_to_a_later_version(later, small, large):
    assert ask(later, small, *WORDS) == ["", {}]
    assert ask(later, large, *LARGE) == ["", {}]


def test_runs_of_both_versions_belong_together(later, small, large):
    assert ask(later, small, *WORDS, recorded=("r1-b16-s1", "r8-b16-s0")) == ["", {}]
    assert "noise_floor: 0.25" in (small / "r1-b16-s1" / "run.yaml").read_text()
    assert "noise_floor" not in (small / "r1-b16-s0" / "run.yaml").read_text()
    assert ask(later, large, *LARGE, recorded=("r4-b16-s1",)) == ["", {}]
    text = (large / "r4-b16-s1" / "run.yaml").read_text()
    assert "folds: 3" in text and "top_p: 1.0" in text and "curriculum: null" in text


@pytest.mark.parametrize(
    ("word", "key", "was", "now"),
    [
        ("noise_floor=0.5", "recipe.noise_floor", "0.25", "0.5"),
        ("cap_tokens=7", "recipe.cap_tokens", "None", "7"),
        ("marks=[3]", "recipe.marks", "[1, 2]", "[3]"),
        ("weights={short: 2}", "recipe.weights.short", "1", "2.0"),
        ("curiosity.kind=count", "recipe.curiosity.kind", "'none'", "'count'"),
        ("curiosity.shares=[1]", "recipe.curiosity.shares", "[0.5, 0.25]", "[1.0]"),
        ("rules.noise=0.5", "rules.noise.value", "0.125", "0.5"),
        ("scale.model.experts=8", "scale.model.experts", "None", "8"),
        ("scale.model.rope=yarn", "scale.model.rope", "'plain'", "'yarn'"),
        ("scale.data.curriculum.stages=4", "scale.data.curriculum", "None", "{'stages': 4}"),
        ("scale.sampling.top_p=0.5", "scale.sampling.top_p", "1.0", "0.5"),
    ],
)
@pytest.mark.slow
def test_another_value_of_a_new_key_is_refused_by_its_name(later, small, word, key, was, now):
    identity, report = ask(later, small, *WORDS, word, recorded=("r8-b16-s1",))
    assert f"r1-b16-s0 holds a run with {key}={was}, and this one has {now};" in identity
    assert f"r8-b16-s1: {key}: " in report or f"r1-b16-s0: {key}: " in report


def test_a_default_that_changed_is_what_the_history_says(tmp_path, small, large):
    """If a record lacks a key, it means the first default of the key."""
    added = {
        "recipe.noise_floor": 0.5,
        "recipe.marks": (3,),
        "recipe.curiosity": {"kind": "count"},
        "rules.noise.value": 0.25,
        "scale.model.experts": 4,
        "scale.data.mixture.folds": 5,  # for records with a mixture
    }
    words = ("noise_floor=0.5", "marks=[3]", "curiosity.kind=count", "rules.noise=0.25", "scale.model.experts=4")
    script = grown_package(tmp_path / "later", added)
    identity, report = ask(script, small, *WORDS)
    assert "r1-b16-s0 holds a run with recipe.noise_floor=0.5, and this one has 0.25;" in identity and report == {}
    assert ask(script, small, *WORDS, *words, recorded=("r8-b16-s1",)) == ["", {}]
    assert "with scale.data.mixture.folds=5, and this one has 3;" in ask(script, large, *LARGE, *words)[0]
    words = (*words, "scale.data.mixture.folds=5")
    assert ask(script, large, *LARGE, *words, recorded=("r4-b16-s1",)) == ["", {}]


def test_this_version_refuses_what_a_later_one_has_recorded_by_name(later, small):
    """A key that is null is accepted: an option that is off means the same to both versions."""
    from rankrl.report.read import read_sweep
    from rankrl.sweep.identity import check_identity

    ask(later, small, *WORDS, recorded=("r8-b16-s1",))
    run = next(run for run in grid("small", "demo", *WORDS[2:]) if run.run_id == "r8-b16-s1")
    named = r"run.yaml has recipe.noise_floor=0.25, a key unknown here \(another rankrl wrote it: use that one\)"
    for act in (lambda: check_identity(small / run.run_id, run), lambda: read_sweep(small)):
        with pytest.raises(ValueError, match=named) as refused:
            act()
        assert "r8-b16-s1" in str(refused.value) and "\n" not in str(refused.value)
    (small / "plan.json").write_text(json.dumps({"r1-b16-s0": 30, "r1-b16-s1": 30, "r8-b16-s0": 30}))
    said = {row["run"]: row["problem"] for row in read_sweep(small).problems}
    assert said["r8-b16-s1"].startswith("foreign: not in the plan, and run.yaml has recipe.noise_floor=0.25")


@pytest.mark.slow
def test_the_report_of_a_sweep_that_was_recorded_in_part_by_an_earlier_version(later, tmp_path):
    runs = grid("small", "demo", *WORDS[2:], *AS_RECORDED)
    small = write_all(tmp_path / "small", runs, drawn(runs, {"": 0.2}, 0.02))
    shutil.copy(ROOT / "tests" / "recorded" / "run.yaml", small / "r8-b16-s0" / "run.yaml")
    for run in small.glob("r*"):
        text = (run / "run.yaml").read_text()
        told = text.replace("sweep: demo", "sweep: small").partition("versions:")[0]
        (run / "run.yaml").write_text(told + "versions:\n  grader: '3'\ndata_revision:\n  train: a\n")
    words = [sys.executable, "-m", "rankrl", "report", str(small)]
    done = subprocess.run(
        words, cwd=later.parent, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((small / "report" / "summary.json").read_text())
    assert summary["problems"] == [] and [row["n_seeds"] for row in summary["ranks"]] == [2, 2]
