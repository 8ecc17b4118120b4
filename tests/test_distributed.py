"""ZeRO-2 on one worker and ZeRO-3 on two start from the same policy and take the same first step."""

from __future__ import annotations

import pytest
import ray
import torch
from conftest import ROOT, runs_of

pytestmark = pytest.mark.pipeline

ONE_UPDATE = ("ranks=[8]", "seeds=[0]", "updates_per_rollout=1", "rules.warmup=0")
ZERO3 = (
    "scale.placement.policy_per_node=2",
    f"scale.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}",
    "scale.placement.micro_batch=32",
)


def first_steps(directory, *overrides):
    """(adapter after one step, line of step 1, line of step 2)."""
    from rankrl.ppo.loop import RunTrainer
    from rankrl.sweep.worker import Bench

    run = runs_of("demo", *ONE_UPDATE, *overrides)[0]
    with Bench([run], directory) as bench:
        trainer = RunTrainer(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
        trainer.attach()
        line = trainer.step(0)
        states = ray.get(bench.services.policy.async_run_method("state", run.run_id))
        return [state["weights"] for state in states], line, trainer.step(1)


def test_zero2_and_zero3_agree_after_the_first_update(tmp_path):
    from rankrl.sweep.local import prepare_process

    prepare_process(3)
    (plain,), line, _ = first_steps(tmp_path / "zero2")
    (left, right), sharded_line, next_line = first_steps(tmp_path / "zero3", *ZERO3)
    for name in left:
        assert torch.equal(left[name], right[name])  # both workers hold the same adapter
    assert sharded_line["accuracy"] == line["accuracy"]  # the same tokens were sampled
    assert sharded_line["grad_norm"] == pytest.approx(line["grad_norm"], rel=0.02)
    moved = {
        name: torch.cat([w[name].flatten() for w in (plain, left)]).view(2, -1)
        for name in plain
        if name.endswith("lora_B")
    }
    cosine = torch.nn.functional.cosine_similarity(*torch.cat(list(moved.values()), dim=1), dim=0)
    assert cosine > 0.98  # Adam's first step is a sign, so entries with a gradient near zero may flip
    assert next_line["kl_step"] > 0 and next_line["sync_gap_nats"] < 0.01
