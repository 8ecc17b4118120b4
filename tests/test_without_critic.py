"""Runs without a critic in the real pipeline: no value worker; the same alone, packed, resumed."""

from __future__ import annotations

import json

import pytest
import ray
import torch
import yaml
from bench_runs import bench_and_alone, check_same, lines, stop_after_a_step, train
from conftest import runs_of

from rankrl.recipe.advantage_section import METHODS

pytestmark = pytest.mark.pipeline

MORE = {
    "group_mean_more_samples": "{samples_per_prompt: 16, batch_samples_per_prompt: 8, advantage: {method: group_mean}}",
    "group_mean_minibatch": "{minibatch_prompts: 4, advantage: {method: group_mean}}",
}
SHORT = ("ranks=[8]", "seeds=[0]", "steps=3", "checkpoint_every=1", "scale.sampling.eval_samples=1")
SHORT += (*(f"arms.{name}={arm}" for name, arm in MORE.items()), "scale.data.train_items=24")  # prompts come again
RUNS = [run for run in runs_of("ablate_advantage", *SHORT) if not run.critic]


bench, alone = bench_and_alone(RUNS, 2)


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
    fewer = firsts.pop("group_mean_more_samples")  # of the same prompts, the first half
    assert fewer["accuracy"] != firsts["group_mean"]["accuracy"]
    assert len({line["accuracy"] for line in firsts.values()}) == 1  # one seed, one first rollout
    norms = {arm: line["grad_norm"] for arm, line in firsts.items()}
    dropped, uniform = norms.pop("group_norm_dropped"), firsts["group_norm"]["uniform_group_frac"]
    assert len({*norms.values()}) == len(norms) == 8
    assert norms["group_mean_constant"] < norms["group_mean"] < norms["rloo"] < norms["group_norm"]
    assert (dropped == norms["group_norm"]) == (uniform == 0)


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, RUNS, "packed", len(RUNS)), alone, RUNS)


def test_resumed_runs_equal_the_lone_ones(bench, alone):
    stopped = stop_after_a_step(bench, RUNS, "resumed")
    for run in RUNS:
        directory = stopped / run.sweep / run.run_id
        state = torch.load(directory / "checkpoint" / "state.pt", weights_only=False)
        assert "policy" in state and "critic" not in state
    check_same(train(bench, RUNS, "resumed", len(RUNS)), alone, RUNS)
