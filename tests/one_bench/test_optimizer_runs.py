"""What is trained, its start and its step, in the real pipeline: alone, packed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_runs import check_same, lines, stop_after_a_step, train, trained_alone
from conftest import runs_of

pytestmark = pytest.mark.pipeline

ARMS = {
    "off": {},
    "b": {"trained": "b"},
    "olora_tail": {"trained": "b", "init": {"method": "olora_tail", "norm": "own"}},
    "tail_both": {"init": {"method": "olora_tail"}},
    "spectral": {"optimizer": {"method": "spectral"}, "rules": {"lr": 0.1}},
    "own_norm": {"init": {"method": "rlmo", "norm": "own"}, "trained": "b"},
}
SHORT = ("ranks=[8]", "seeds=[0]", "steps=3", "checkpoint_every=1", "rules.warmup=0", "scale.sampling.eval_samples=1",
         "scale.placement.micro_batch=32")  # two micro-batches a step  # fmt: skip
RUNS = runs_of("demo", "name=optimizers", f"arms={json.dumps(ARMS)}", *SHORT)


alone = trained_alone(RUNS)


def result(root: Path, run) -> dict:
    return json.loads((root / run.sweep / run.run_id / "result.json").read_text())


def test_every_arm_trains_what_it_says(alone):
    for run in RUNS:
        found, steps = result(alone, run), lines(alone, run)
        assert (found["status"], found["trainable_params"]) == ("finished", run.trainable_params)
        assert all(line["sync_gap_nats"] < 0.01 and line["grad_norm"] > 0 for line in steps)
        sent = 2 * run.trainable_params if run.arm == "tail_both" else run.trainable_params
        assert [line["sync_bytes"] for line in steps] == [4 * sent] * 3  # fp32; B alone where A is frozen
    sizes = {run.arm: [line["delta_norm"] for line in lines(alone, run)] for run in RUNS}
    assert len({norm[-1] for norm in sizes.values()}) == len(RUNS), "arms that do the same thing"
    assert sizes["olora_tail"] == pytest.approx(sizes["own_norm"], rel=0.02)  # one update, rounded apart
    assert sizes["b"][0] == pytest.approx(sizes["off"][0], rel=0.3) and sizes["b"][0] != sizes["off"][0]


def test_a_frozen_a_stays_where_it_starts_and_has_no_moments(bench, alone):
    stopped = stop_after_a_step(bench, RUNS, "resumed")
    for run in RUNS:
        state = torch.load(stopped / run.sweep / run.run_id / "checkpoint" / "state.pt", weights_only=True)
        policy = state["policy"][0]
        moments, weights = policy["optimizer"]["adam"]["state"], policy["weights"]
        kept = {"mean"} if run.arm == "spectral" else {"step", "exp_avg", "exp_avg_sq"}
        assert all(set(of_one) == kept for of_one in moments.values())
        assert len(moments) == len(weights) // (2 if run.recipe.trained == "b" else 1)
        same = [torch.equal(weights[name], policy["previous"][name]) for name in weights if name.endswith("lora_A")]
        assert len(same) == 14 and (all(same) if run.recipe.trained == "b" else not any(same))
    check_same(train(bench, RUNS, "resumed", len(RUNS)), alone, RUNS)


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, RUNS, "packed", len(RUNS)), alone, RUNS)


@pytest.mark.parametrize("arm", ["b", "olora_tail", "spectral"])
def test_the_saved_adapter_is_the_one_that_acted(bench, alone, arm):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = next(run for run in RUNS if run.arm == arm)
    directory = alone / run.sweep / run.run_id / "adapter"
    base = AutoModelForCausalLM.from_pretrained(bench.services.model_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(directory))
    assert loaded.peft_config["default"].r == 8
    final = json.loads((directory / "diagnostics.json").read_text())["final"]["modules"]
    for module, size in final.items():
        layer = loaded.base_model.model.get_submodule(module)
        assert float(layer.get_delta_weight("default").norm()) == pytest.approx(size["delta_norm"], rel=1e-3)
