"""Critics in the real pipeline: every arm of ablate_critic alone, packed and resumed."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from bench_runs import check_same, lines, stop_after_a_step, train, trained_alone
from conftest import runs_of

pytestmark = pytest.mark.pipeline

SHORT = ("ranks=[8]", "seeds=[0]", "steps=3", "checkpoint_every=1", "rules.warmup=0", "scale.sampling.eval_samples=1",
         "scale.placement.micro_batch=32")  # two micro-batches a step  # fmt: skip
WARMED = ("arms.warmup.critic.warmup_steps=1", "arms.ensemble.critic.warmup_steps=1")
OTHERS = ("arms.ensemble.critic.lambda=1", "arms.ensemble.gae_lambda=0.9")
RUNS = runs_of("ablate_critic", *SHORT, *WARMED, *OTHERS)
METRICS = {"value_loss", "explained_variance", "value_mean", "critic_lr", "critic_grad_norm"}


alone = trained_alone(RUNS)


def test_every_arm_trains_and_says_what_its_values_explain(alone):
    firsts = {run.arm: lines(alone, run)[0] for run in RUNS}
    for run in RUNS:
        directory = alone / run.sweep / run.run_id
        assert json.loads((directory / "result.json").read_text())["status"] == "finished"
        for line in lines(alone, run):
            assert set(line) >= METRICS and ("value_gap" in line) == (run.arm == "ensemble")
            assert line["explained_variance"] < 1 and line["critic_grad_norm"] > 0
            assert line["critic_lr"] == run.scale.reference.critic_lr
    assert len({line["accuracy"] for line in firsts.values()}) == 1  # one seed, one first rollout
    explained = {arm: line["explained_variance"] for arm, line in firsts.items()}
    second = explained.pop("ensemble")
    assert len(set(explained.values())) == 1 and second not in explained.values()
    assert firsts["ensemble"]["value_gap"] > 0
    losses = {arm: line["policy_loss"] for arm, line in firsts.items()}
    assert losses["warmup"] == losses["ensemble"] == 0  # the policy waits
    assert len({line["value_loss"] for line in firsts.values()}) >= 2
    norms = [lines(alone, run)[-1]["grad_norm"] for run in RUNS]
    assert len(set(norms)) == len(RUNS), "arms that do the same thing"


def test_the_record_and_tensorboard_know_the_critics(alone):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = next(run for run in RUNS if run.arm == "ensemble")
    directory = alone / run.sweep / run.run_id
    found = yaml.safe_load((directory / "run.yaml").read_text())["recipe"]["critic"]
    assert (found["ensemble"], found["lambda"], found["warmup_steps"]) == (2, 1.0, 1)
    tags = EventAccumulator(str(directory / "tb")).Reload().Tags()["scalars"]
    wanted = ("explained_variance", "value_mean", "value_gap", "critic_lr", "critic_grad_norm")
    assert {f"critic/{name}" for name in wanted} <= set(tags)


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, RUNS, "packed", len(RUNS)), alone, RUNS)


def test_resumed_runs_equal_the_lone_ones(bench, alone):
    stopped = stop_after_a_step(bench, RUNS, "resumed")
    for run in RUNS:
        directory = stopped / run.sweep / run.run_id
        state = torch.load(directory / "checkpoint" / "state.pt", weights_only=True)
        assert ("second_critic" in state) == (run.arm == "ensemble")
    weights = [state[role][0]["weights"] for role in ("critic", "second_critic")]  # of the last arm
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    check_same(train(bench, RUNS, "resumed", len(RUNS)), alone, RUNS)


def test_detached_runs_leave_no_critic(bench, alone):
    import ray

    run = next(run for run in RUNS if run.arm == "ensemble")
    for name in (f"{run.run_id}-value", f"{run.run_id}-value-2"):
        with pytest.raises(ray.exceptions.RayTaskError, match="KeyError"):
            ray.get(bench.services.critic.async_run_method("state", name))
