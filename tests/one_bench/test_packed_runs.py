"""Runs that train at once on the same services do not affect each other, even if one fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
from conftest import runs_of
from safetensors.torch import load_file

pytestmark = pytest.mark.pipeline

SHORT = ("steps=12", "checkpoint_every=6", "scale.sampling.eval_samples=1")
WATCHED = [*runs_of("demo", "ranks=[1,32]", "seeds=[0]", *SHORT), *runs_of("demo", "ranks=[8]", "seeds=[1]", *SHORT)]
OTHERS = [
    *runs_of("demo", "ranks=[2,4,16]", "seeds=[2]", *SHORT),
    *runs_of("demo", "ranks=[1,32]", "seeds=[3]", *SHORT),
]
SECONDS = {"rollout_s", "experience_s", "update_s", "sync_s", "step_s"}


def train(bench, name: str, runs, parallel_runs: int) -> Path:
    """Trains `runs` in a directory of their own and returns it."""
    from rankrl.sweep.packing import train_all

    directory, bench.directory = bench.directory, bench.directory / name
    try:
        statuses = list(train_all(list(runs), bench, parallel_runs))
        assert len(statuses) == len(runs)
        return bench.directory / "demo"
    finally:
        bench.directory = directory


@pytest.fixture(scope="module")
def alone(bench) -> Path:
    """The directory of the watched runs, trained one after another."""
    return train(bench, "alone", WATCHED, 1)


def curve(root: Path, run) -> list[dict]:
    """The metrics of every step except times."""
    lines = map(json.loads, (root / run.run_id / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in SECONDS} for line in lines]


def check_same(left: Path, right: Path, run) -> None:
    """Asserts that every metric of every step, every evaluated sample and every training sample
    that is kept are equal bit for bit."""
    assert json.loads((left / run.run_id / "result.json").read_text())["status"] == "finished"
    assert len(curve(left, run)) == 12
    assert curve(left, run) == curve(right, run)
    samples = [pd.read_parquet(root / run.run_id / "evals.parquet") for root in (left, right)]
    pd.testing.assert_frame_equal(*samples)
    ours, theirs = ((root / run.run_id / "rollouts.jsonl").read_bytes() for root in (left, right))
    assert ours == theirs and ours.count(b"\n") == 12 * 4


def status(root: Path, run) -> str:
    return json.loads((root / run.run_id / "result.json").read_text())["status"]


def test_two_lone_repetitions_are_identical(bench, alone):
    check_same(train(bench, "again", WATCHED[:1], 1), alone, WATCHED[0])


def test_a_packed_run_equals_the_lone_one(bench, alone):
    """With eight runs of ranks 1 to 32 at once, prompts, first tokens, first update and all that
    follows equal those of the run alone."""
    packed = train(bench, "packed", [*WATCHED, *OTHERS], 8)
    for run in WATCHED:
        check_same(packed, alone, run)
    assert {status(packed, run) for run in OTHERS} == {"finished"}


def meddle(monkeypatch, at: int, what: dict) -> None:
    """Calls `what[run_id](trainer)` once before PPO step `at` of that run."""
    from rankrl.ppo.loop import RunTrainer

    step, left = RunTrainer.step, dict(what)

    def meddled(self, index):
        if index == at and self.run.run_id in left:
            left.pop(self.run.run_id)(self)
        return step(self, index)

    monkeypatch.setattr(RunTrainer, "step", meddled)


@pytest.fixture
def full_disk(bench):
    """Puts a run's directory on a disk too small for its checkpoint."""
    mounted = []

    def full_disk(directory: Path) -> None:
        directory.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(directory)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(directory)

    yield full_disk
    for directory in mounted:
        subprocess.run(["umount", str(directory)], check=True)


def explode(trainer) -> None:
    """Multiplies the policy's learning rate by 1e30."""
    state = trainer.state(0)
    for worker in state["policy"]:
        worker["scheduler"]["base_lrs"] = [1e30 * lr for lr in worker["scheduler"]["base_lrs"]]
        for group in worker["optimizer"]["adam"]["param_groups"]:
            group["lr"] *= 1e30
    tokens_total = trainer.tokens_total
    trainer.restore(state)
    trainer.tokens_total = tokens_total


def left_behind(run: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file under a run directory."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def check_last_finite(run: Path, adapter_step: int, checkpoint_step: int, error: str) -> None:
    """Asserts what a diverged run leaves: all of it finite, and from before the divergence."""
    from rankrl.ppo.records import all_finite

    state = torch.load(run / "checkpoint" / "state.pt", weights_only=True)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all_finite(state) and all_finite(tensors)
    assert {path.name for path in (run / "checkpoint").iterdir()} == {"state.pt", "step"}
    assert state["step"] == int((run / "checkpoint" / "step").read_text()) == checkpoint_step
    assert json.loads((run / "adapter" / "diagnostics.json").read_text())["steps"] == adapter_step
    card = (run / "adapter" / "README.md").read_text()
    assert f"**The run diverged**: {error}. These are its weights after step {adapter_step} of 12" in card
    moved = any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert moved == (adapter_step > 0) and max(tensor.abs().max() for tensor in tensors.values()) < 10
    told = (run / "error.txt").read_text()
    assert f"{run.name} diverged after step " in told and f": Diverged: {error}\n" in told
    assert "Traceback (most recent call last)" in told and "in train" in told and len(told) < 100_000


def test_a_stopped_a_diverged_and_a_full_run_end_alone(bench, alone, monkeypatch, full_disk, capsys):
    stopped, full, _ = OTHERS[:3]
    slow = ("warmup_offset=0", "rules.warmup=0.1")  # so that only the second update explodes
    diverging = runs_of("demo", "ranks=[1]", "seeds=[4]", "rules.lr=1e25", *slow, *SHORT)[0]
    later = runs_of("demo", "ranks=[2]", "seeds=[5]", SHORT[0], "checkpoint_every=3", SHORT[2])[0]
    root = bench.directory / "broken" / "demo"
    full_disk(root / full.run_id)
    stop = {stopped.run_id: lambda trainer: (root / stopped.run_id / "STOP").touch()}
    meddle(monkeypatch, 5, {**stop, later.run_id: explode})
    train(bench, "broken", [stopped, diverging, later, full, *WATCHED], 7)
    for run in WATCHED:
        check_same(root, alone, run)
    assert len(curve(root, stopped)) == 6 and not (root / stopped.run_id / "result.json").exists()
    assert status(root, diverging) == status(root, later) == "diverged"
    check_last_finite(root / diverging.run_id, 0, 0, "step 2: a log-probability is not finite")
    check_last_finite(root / later.run_id, 5, 3, "step 6: policy_loss is nan")
    before = [left_behind(root / run.run_id) for run in (diverging, later)]
    train(bench, "broken", [diverging, later], 2)
    assert [left_behind(root / run.run_id) for run in (diverging, later)] == before
    assert f"{full.run_id} failed: OSError: [Errno 28] No space left on device" in capsys.readouterr().out


@pytest.mark.parametrize("service", ["engine", "policy", "critic"])
def test_a_killed_service_costs_no_run_anything(bench, alone, monkeypatch, capsys, service):
    def kill(trainer):
        services = trainer.services
        if service == "engine":
            os.kill(ray.get(services.engines[0].ready.remote()), signal.SIGKILL)
        else:
            ray.kill(getattr(services, service).workers[0])

    meddle(monkeypatch, 9, {WATCHED[0].run_id: kill})
    root = train(bench, service, WATCHED, 3)
    output = capsys.readouterr().out
    assert "restarting services after" in output
    for run in WATCHED:
        assert f"{run.run_id}: resumed at step 6" in output
        assert "error" not in json.loads((root / run.run_id / "result.json").read_text())
        check_same(root, alone, run)
    shutil.rmtree(root)
