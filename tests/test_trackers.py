"""The scripts of docs/trackers.md on event files of a run, as they stand there.

The trackers themselves are not installed here: stand-ins note what they are given.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import runs_of

DOCS = Path(__file__).resolve().parents[1] / "docs" / "trackers.md"
SHARED, WANDB, MLFLOW = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def sweep(stack, tmp_path) -> Path:
    """A sweep of one run of three steps, stopped after the second and resumed."""
    from rankrl.ppo.records import Record

    (run,) = runs_of("demo", "ranks=[1]", "seeds=[0]", "steps=3")
    directory = tmp_path / "low_rank" / run.run_id
    for resumed_at, steps in ((0, (1, 2)), (1, (2, 3))):
        record = Record(directory, run)
        record.start(run.resolved(), resumed_at)
        for step in steps:
            record.step({"step": step, "accuracy": step / 8, "kl_ref": 0.5})
        record.close()
    return directory.parent


class Tracker:
    """Notes (run, step, values) of each call."""

    def __init__(self):
        self.projects: set[str] = set()
        self.noted: list[tuple[str, int, dict]] = []

    @contextmanager
    def run(self, name: str):
        yield SimpleNamespace(log=lambda values, step: self.noted.append((name, step, values)))

    def init(self, project: str, name: str):  # of wandb
        self.projects.add(project)
        return self.run(name)

    def start_run(self, run_name: str):  # of mlflow
        self.name = run_name
        return self.run(run_name)

    def log_metrics(self, values: dict, step: int):
        self.noted.append((self.name, step, values))

    def set_experiment(self, name: str):
        self.projects.add(name)


@pytest.mark.parametrize(("module", "part"), [("wandb", WANDB), ("mlflow", MLFLOW)])
def test_a_tracker_gets_each_step_once_with_the_values_of_the_record(sweep, monkeypatch, module, part):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, module, tracker)
    monkeypatch.setattr(sys, "argv", ["copy_runs.py", str(sweep)])
    exec(compile(SHARED + part, str(DOCS), "exec"), {})
    assert tracker.projects == {"low_rank"} and {name for name, _, _ in tracker.noted} == {"r1-b16-s0"}
    copied = {step: (values["reward/accuracy"], values["kl/kl_ref"]) for _, step, values in tracker.noted if step}
    lines = [json.loads(line) for line in (sweep / "r1-b16-s0" / "metrics.jsonl").read_text().splitlines()]
    assert copied == {line["step"]: (line["accuracy"], line["kl_ref"]) for line in lines}
    assert [step for _, step, _ in tracker.noted if step] == [1, 2, 3]
