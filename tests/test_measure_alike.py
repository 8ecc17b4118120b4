"""Runs of one sweep are measured alike: on the same items, by the same grader.

Other differences of versions are noted. No Ray.
"""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import runs_of
from records import Grown, small, write_run

from rankrl.data.items import revision
from rankrl.data.loading import load_items
from rankrl.report.read import read_sweep
from rankrl.report.resolved import versions_apart
from rankrl.reward.grade import GRADER
from rankrl.sweep import local
from rankrl.sweep.evaluate import measured_apart
from rankrl.sweep.measure_alike import check_measure, recorded_runs
from rankrl.sweep.tasks import left

VERSIONS = {
    "rankrl": "0.1.0",
    "grader": str(GRADER),
    "torch": "2.13.0+cu128.dev1",
    "git_commit": "192b2ac2b763c78550f1ce5b30a04014268cfcd4",
}


class Started(Exception):
    """Raised at the point where services would start."""


def start(gpus):
    raise Started


def write_data(directory, answer: int = 0):
    for name, first in (("train", 0), ("eval", 100)):
        rows = [{"prompt": f"{first + i} + 0 =\n", "answer": str(first + i + answer)} for i in range(20)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(run_dir, **changes):
    """Changes top-level keys of a run.yaml; None removes a key."""
    content = yaml.safe_load((run_dir / "run.yaml").read_text()) | changes
    (run_dir / "run.yaml").write_text(
        yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False)
    )


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A sweep of four runs with data files of its own. Two are recorded, one is finished."""
    monkeypatch.setattr(local, "prepare_process", start)
    write_data(tmp_path)
    data = [f"scale.data.train={tmp_path}/train.jsonl", f"scale.data.evaluation={tmp_path}/eval.jsonl"]
    runs = runs_of("demo", "ranks=[1,8]", "seeds=[0,1]", *data, "scale.data.train_items=20", "scale.data.eval_items=20")
    items = load_items(runs[0].scale.data)
    for run in runs[:2]:
        directory = write_run(tmp_path / "demo" / run.run_id, run, Grown(0.1, 1000, 1.0), items=0)
        record(
            directory,
            versions=VERSIONS,
            data_revision=dict(zip(("train", "evaluation"), map(revision, items), strict=True)),
        )
    (tmp_path / "demo" / "r1-b16-s1" / "result.json").unlink()
    return tmp_path, runs


def test_a_sweep_goes_on_where_nothing_has_changed(begun):
    root, runs = begun
    with pytest.raises(Started):
        local.sweep(runs, root, report=False)


def test_a_file_that_has_changed_is_refused_before_anything_starts(begun):
    root, runs = begun
    before = revision(load_items(runs[0].scale.data)[0])
    write_data(root, answer=1)
    after = revision(load_items(runs[0].scale.data)[0])
    with pytest.raises(ValueError) as refused:
        local.sweep(runs, root, report=False)
    assert str(refused.value) == (
        f"data.train={root}/train.jsonl: the file has changed since run r1-b16-s0: revision {before} there, {after} "
        "here; put the file back, or choose another --runs directory or name="
    )
    with pytest.raises(ValueError, match=r"data.train=.* since run r1-b16-s0"):  # for new runs too
        local.sweep(runs[2:], root, report=False)


def test_evaluation_items_that_have_changed_are_refused(begun):
    root, runs = begun
    train = (root / "train.jsonl").read_text()
    write_data(root, answer=1)
    (root / "train.jsonl").write_text(train)
    with pytest.raises(
        ValueError, match=rf"^data.evaluation={root}/eval.jsonl: the file has changed since run r1-b16-s0"
    ):
        local.sweep(runs, root, report=False)


def test_nothing_is_read_where_nothing_is_left_to_do(begun):
    root, runs = begun
    (root / "train.jsonl").unlink()
    assert local.sweep(runs[:1], root, report=False) == 0
    with pytest.raises(ValueError, match=r"data.train: got .*train.jsonl"):
        local.sweep(runs, root, report=False)


def test_a_grader_of_another_version_is_refused(begun):
    root, runs = begun
    record(root / "demo" / "r1-b16-s1", versions={**VERSIONS, "grader": "2"})
    with pytest.raises(ValueError) as refused:
        local.sweep(runs, root, report=False)
    assert str(refused.value) == (
        f"grader: got version {GRADER}, allowed: 2, which graded run r1-b16-s1 (two versions' scores do not compare: "
        "use rankrl 0.1.0 at commit 192b2ac2b763c78550f1ce5b30a04014268cfcd4, or choose another --runs directory or "
        "name=)"
    )


@pytest.mark.parametrize(
    "changes",
    [{"data_revision": None}, {"versions": None}, {"versions": {"torch": "1"}}, {"data_revision": "synthetic"}],
)
def test_what_a_record_does_not_say_is_not_compared(begun, changes):
    root, runs = begun
    for name in ("r1-b16-s0", "r1-b16-s1"):
        record(root / "demo" / name, **changes)
    with pytest.raises(Started):
        local.sweep(runs, root, report=False)


def test_items_that_differ_by_a_setting_are_told_by_the_setting(begun):
    root, _ = begun
    data = [f"scale.data.train={root}/train.jsonl", f"scale.data.evaluation={root}/eval.jsonl"]
    fewer = runs_of("demo", "ranks=[8]", "seeds=[5]", *data, "scale.data.train_items=16", "scale.data.eval_items=20")
    with pytest.raises(
        ValueError, match=r"run r1-b16-s0 was made with scale.data.train_items=20, and this one has 16; choose"
    ):
        local.sweep(fewer, root, report=False)


def test_items_of_a_task_that_have_changed_are_no_file(tmp_path):
    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]")
    record(
        write_run(tmp_path / run.run_id, run, Grown(0.1, 1, 1.0), 0),
        data_revision={"train": "abc", "evaluation": "def"},
    )
    write_run(tmp_path / "copy of it", run, Grown(0.1, 1, 1.0), 0)  # no run by its name
    recorded = recorded_runs(tmp_path)
    assert [*recorded] == ["r1-b16-s0"]
    with pytest.raises(
        ValueError, match=r"^data.train=nano: its items have changed since run r1-b16-s0: revision abc there"
    ):
        check_measure(recorded, run.scale.data, ([], []))


def test_a_record_of_a_newer_version_is_refused(begun):
    root, runs = begun
    record(root / "demo" / "r1-b16-s0", format=2)
    with pytest.raises(ValueError, match=r"run r1-b16-s0: run.yaml has format=2, allowed: at most 1"):
        local.sweep(runs[1:], root, report=False)


@pytest.mark.parametrize(("changes", "says"), [({"format": "abc"}, "it is damaged"), ({"curriculum": {"stages": 3}},
    r"run.yaml has curriculum=\{'stages': 3\}, a key unknown here")])  # fmt: skip
def test_a_record_that_cannot_be_understood_is_refused_by_name(begun, changes, says):
    root, runs = begun
    record(root / "demo" / "r1-b16-s0", **changes)
    with pytest.raises(ValueError, match=says):
        local.sweep(runs[1:], root, report=False)


def test_a_copy_beside_the_planned_runs_blocks_nothing(begun):
    root, runs = begun
    copy = root / "demo" / "backup-r8-b16-s0"
    copy.mkdir()
    (copy / "run.yaml").write_text("format: 9\n")
    with pytest.raises(Started):
        local.sweep(runs, root, report=False)


def test_slurm_tasks_are_not_submitted_on_other_items(begun):
    root, runs = begun
    assert [run.run_id for run in left(runs, root / "demo")[0]] == ["r1-b16-s1", "r8-b16-s0", "r8-b16-s1"]
    write_data(root, answer=1)
    with pytest.raises(ValueError, match=r"data.train=.*: the file has changed since run r1-b16-s0"):
        left(runs, root / "demo")
    assert left(runs[:1], root / "demo")[0] == []


def test_an_evaluation_of_other_items_by_another_grader_is_noted(begun):
    root, runs = begun
    items, run = load_items(runs[0].scale.data)[1], root / "demo" / "r1-b16-s0"
    assert measured_apart(run, items) == []
    record(run, versions={**VERSIONS, "grader": "2"})
    assert measured_apart(run, items[:3]) == [
        f"the run's own evaluation had evaluation items of revision {revision(items)}, this one has {revision(items[:3])}",
        f"the run's own evaluation had grader of revision 2, this one has {GRADER}",
    ]


def test_other_versions_are_noted(begun):
    root, _ = begun
    record(
        root / "demo" / "r1-b16-s1",
        versions={"rankrl": "0.1.0", "grader": str(GRADER), "torch": "2.14.0", "vllm": "0.29.0"},
    )
    recorded = recorded_runs(root / "demo").values()
    assert versions_apart(recorded, VERSIONS | {"git_commit": "abc"}) == (
        "torch 2.13.0+cu128.dev1 here, 2.14.0 (1 run); git_commit abc here, 192b2ac2b763 (1 run), none (1 run); "
        "vllm none here, 0.29.0 (1 run)"
    )
    record(root / "demo" / "r1-b16-s1", versions=VERSIONS)
    assert versions_apart(recorded_runs(root / "demo").values(), VERSIONS) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data_revision": {"train": "b", "evaluation": "c"}}, "data_revision.train: 'b' here, 'a' there"),
        ({"data_revision": {"train": "a", "evaluation": "d"}}, "data_revision.evaluation: 'd' here, 'c' there"),
        ({"versions": {**VERSIONS, "grader": "2"}}, f"versions.grader: '2' here, '{GRADER}' there"),
    ],
)
def test_runs_that_were_measured_differently_are_not_mixed_in_a_report(tmp_path, changes, says):
    root = small(tmp_path)
    for run in root.glob("r*"):
        record(run, data_revision={"train": "a", "evaluation": "c"}, versions=VERSIONS)
    record(root / "r8-b16-s1", **changes)
    with pytest.raises(ValueError, match=rf"mixes runs that are not alike.*\(r8-b16-s1: {says};") as refused:
        read_sweep(root)
    assert "\n" not in str(refused.value)
    (root / "plan.json").write_text(json.dumps({"r1-b16-s0": 30, "r1-b16-s1": 30}))
    said = {row["run"]: row["problem"] for row in read_sweep(root).problems}
    assert said["r8-b16-s1"] == f"foreign: not in the plan, and {says}; left out"
    more = {"template": "t", "evaluation": "c", "train": "a"}  # a part that was added later, another order
    record(root / "r8-b16-s0", data_revision=more)
    assert "r8-b16-s0" in {row["run_id"] for row in read_sweep(root).results}
    for unsaid in ({"data_revision": None}, {"versions": None}):  # as before these were recorded
        record(root / "r8-b16-s1", **(dict.fromkeys(changes) | unsaid))
    assert "r8-b16-s1" in [result["run_id"] for result in read_sweep(root).results]


def test_the_report_names_versions_that_occur_side_by_side(tmp_path):
    root = small(tmp_path)
    assert read_sweep(root).problems == []
    for run in root.glob("r*"):
        record(run, versions=VERSIONS)
    record(root / "r1-b16-s0", versions=VERSIONS | {"torch": "2.14.0"})
    record(root / "r8-b16-s0", versions=VERSIONS | {"git_commit": "7" * 40})
    record(root / "r8-b16-s1", versions=VERSIONS | {"git_commit": "7" * 40})
    assert read_sweep(root).problems == [
        {
            "run": "",
            "problem": "made by different versions: torch 2.13.0+cu128.dev1 (5 runs), 2.14.0 (1 run); "
            "git_commit 192b2ac2b763 (4 runs), 777777777777 (2 runs)",
        }
    ]
