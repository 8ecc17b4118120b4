"""Runs without a critic in the real pipeline: no value worker; the same alone, packed, resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch
import yaml
from conftest import runs_of

from rankrl.recipe.advantage_section import METHODS

pytestmark = pytest.mark.pipeline

SHORT = ("ranks=[8]", "seeds=[0]", "steps=3", "checkpoint_every=1", "scale.sampling.eval_samples=1")
RUNS = [run for run in runs_of("ablate_advantage", *SHORT) if not run.critic]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator:
    from rankrl.sweep.local import prepare_process

    prepare_process(2)
    from rankrl.sweep.bench import Bench

    with Bench(RUNS, tmp_path_factory.mktemp("runs"), len(RUNS)) as bench:
        yield bench


def train(bench, name: str, parallel_runs: int) -> Path:
    """Trains the runs in a directory of their own and returns it."""
    from rankrl.sweep.packing import train_all

    directory, bench.directory = bench.directory, bench.directory / name
    try:
        assert len(list(train_all(RUNS, bench, parallel_runs))) == len(RUNS)
        return bench.directory
    finally:
        bench.directory = directory


@pytest.fixture(scope="module")
def alone(bench) -> Path:
    return train(bench, "alone", 1)


def lines(root: Path, run) -> list[dict]:
    """The metrics of every step except times."""
    found = map(json.loads, (root / run.sweep / run.run_id / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in found]


def check_same(left: Path, right: Path) -> None:
    for run in RUNS:
        assert len(lines(left, run)) == 3 and lines(left, run) == lines(right, run)
        rows = [pd.read_parquet(root / run.sweep / run.run_id / "evals.parquet") for root in (left, right)]
        pd.testing.assert_frame_equal(*rows)
        texts = [(root / run.sweep / run.run_id / "rollouts.jsonl").read_bytes() for root in (left, right)]
        assert texts[0] == texts[1]


def test_there_is_no_value_worker(bench):
    services = bench.services
    assert services.critic is None and services.groups == [services.policy] and services.seats.value == []
    actors = ray._private.state.actors().values()
    assert sorted(a["ActorClassName"] for a in actors if a["State"] == "ALIVE") == ["PolicyWorker", "RolloutEngine"]
    assert bench.scale.placement.critic_per_node == 1  # what the scale has for runs with a critic


def test_every_method_trains_and_records_no_critic(alone):
    for run in RUNS:
        directory = alone / run.sweep / run.run_id
        assert json.loads((directory / "result.json").read_text())["status"] == "finished"
        for line in lines(alone, run):
            assert "value_loss" not in line and 0 <= line["uniform_group_frac"] < 1
            assert line["grad_norm"] > 0
        resolved = yaml.safe_load((directory / "run.yaml").read_text())
        assert run.arm.startswith(resolved["recipe"]["advantage"]["method"])
        assert "critic.model_name_or_path" not in resolved["openrlhf"]
    assert {run.recipe.advantage.method for run in RUNS} == {*METHODS} - {"gae"}
    firsts = {run.arm: lines(alone, run)[0] for run in RUNS}
    assert len({line["accuracy"] for line in firsts.values()}) == 1  # one seed, one first rollout
    norms = {arm: line["grad_norm"] for arm, line in firsts.items()}
    dropped, uniform = norms.pop("group_norm_dropped"), firsts["group_norm"]["uniform_group_frac"]
    assert len({*norms.values()}) == len(norms) == 6
    assert norms["group_mean_constant"] < norms["group_mean"] < norms["rloo"] < norms["group_norm"]
    assert (dropped == norms["group_norm"]) == (uniform == 0)


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, "packed", len(RUNS)), alone)


def test_resumed_runs_equal_the_lone_ones(bench, alone):
    for run in RUNS:
        directory = bench.directory / "resumed" / run.sweep / run.run_id
        directory.mkdir(parents=True)
        (directory / "STOP").touch()
    stopped = train(bench, "resumed", 1)
    for run in RUNS:
        directory = stopped / run.sweep / run.run_id
        assert not (directory / "result.json").exists() and len(lines(stopped, run)) == 1
        state = torch.load(directory / "checkpoint" / "state.pt", weights_only=False)
        assert "policy" in state and "critic" not in state
    check_same(train(bench, "resumed", 1), alone)
