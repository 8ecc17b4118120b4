"""Every start of an adapter on the real services at scale=nano: it equals the base, trains, and
acts in the engine."""

from __future__ import annotations

import json

import pytest
import ray
import torch
import yaml
from conftest import runs_of

from rankrl.adapter.delta import norm_of
from rankrl.recipe.allocation import read_importance
from rankrl.recipe.init_section import DRAWN, FROM_WEIGHTS, MEASURED, REWRITING

pytestmark = pytest.mark.pipeline

MEASURE = ("init.prompts=16", "init.samples_per_prompt=8")
VARIANTS = {
    **dict.fromkeys((*DRAWN, *FROM_WEIGHTS), ()),
    **dict.fromkeys(MEASURED, MEASURE),
    "pg_subspace fisher": (*MEASURE, "init.fisher=true", "init.off_principal=4"),
}


def run_of(variant, *overrides):
    options = (f"init.method={variant.split()[0]}", *VARIANTS[variant])
    return runs_of("demo", "ranks=[8]", "seeds=[0]", "steps=2", "rules.warmup=0", *options, *overrides)[0]


def logprobs(group, batch):
    fields = {key: [getattr(batch, key)] for key in ("sequences", "action_mask", "attention_mask")}
    return ray.get(group.async_run_method_batch("forward", **fields))[0][0]


@pytest.fixture(scope="module")
def references():
    """Log-probabilities of the base, filled by the variants; the first is the reference."""
    return []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_policy_starts_as_the_base_and_its_engine_follows_it(bench, references, variant):
    from rankrl.ppo.loop import RunTrainer

    run = run_of(variant, "scale.placement.micro_batch=32")  # two micro-batches a step
    trainer = RunTrainer(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
    try:
        assert trainer.attach(None, bench.start(run)) == run.trainable_params
        samples = trainer.rollouts.rollout(None, 0, 0, trainer.train_items[:2], 8)  # of the base, the same for all
        batch = trainer.experience_maker.split_rollout_samples(samples)[0]
        policy, reference = (logprobs(g, batch) for g in (trainer.policy, trainer.reference))
        references.append(reference)
        assert torch.equal(reference, references[0])
        if run.recipe.init.method in REWRITING:
            assert (policy - reference).abs().max() < 1e-4
        else:
            assert torch.equal(policy, reference)
        started = trainer.rollouts.rollout(trainer.adapter_id, 0, 0, trainer.train_items[:2], 8)
        assert [s.response_ids for s in started] == [
            s.response_ids for s in samples
        ]  # the engine starts as the base too
        lines = [trainer.step(step) for step in range(2)]
        assert lines[0]["kl_ref"] == pytest.approx(0, abs=1e-5) and lines[1]["kl_step"] > 1e-6
        assert all(line["sync_gap_nats"] < 0.01 for line in lines)
        assert (logprobs(trainer.policy, batch) - reference).abs().max() > 1e-3
        assert torch.equal(logprobs(trainer.reference, batch), reference)
        sizes = trainer.update_sizes().values()
        assert all(size["delta_norm"] > 0 for size in sizes)
        assert lines[1]["delta_norm"] == pytest.approx(norm_of(sizes)) and lines[0]["delta_norm"] > 0
        assert all(-1 <= line["grad_cosine"] <= 1 and 0 < line["ess_frac"] < 1 <= line["ratio_max"] for line in lines)
        assert all(0 <= line["entropy_p10"] < line["entropy"] < line["entropy_p90"] for line in lines)
        assert all(line["norm_clipped_frac"] in (0, 0.5, 1) and line["advantage_sd"] > 0 for line in lines)
    finally:
        trainer.detach()


@pytest.mark.parametrize("variant", ["pg_subspace", "pissa"])
def test_a_run_leaves_its_diagnostics(bench, variant):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = run_of(variant, f"name={variant}", "scale.sampling.eval_samples=1")
    result = bench.attempt(run, attempts=1)
    assert result.status == "finished", result
    directory = bench.directory / variant / run.run_id
    facts = json.loads((directory / "adapter" / "diagnostics.json").read_text())
    assert facts["init"]["method"] == variant and len(facts["init"]["modules"]) == len(facts["final"]["modules"]) == 14
    assert facts["final"]["delta_norm"] > 0 and facts["final"]["effective_rank"] >= 1
    if variant == "pg_subspace":
        assert facts["init"]["measured"]["samples"] == 128
        assert set(facts["init"]["modules"]["model.layers.0.self_attn.q_proj"]) == {
            "kept",
            "captured_energy",
            "halves_agreement",
            "principal_share",
        }
    base = AutoModelForCausalLM.from_pretrained(bench.services.model_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(directory / "adapter"))
    assert loaded.peft_config["default"].r == (16 if variant == "pissa" else 8)
    norms = {m: size["delta_norm"] for m, size in facts["final"]["modules"].items()}
    for module, norm in norms.items():
        layer = loaded.base_model.model.get_submodule(module)
        assert float(layer.get_delta_weight("default").norm()) == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("value", ["signal", "activation", "fisher"])
def test_ranks_go_where_the_measurement_says(bench, value):
    options = (
        "allocation.method=greedy",
        f"allocation.value={value}",
        f"name={value}",
        "scale.sampling.eval_samples=1",
    )
    run = runs_of("demo", "ranks=[2]", "seeds=[0]", "steps=1", *options)[0]
    result = bench.attempt(run, attempts=1)
    assert result.status == "finished", result
    assert 0.95 * run.trainable_params <= result.trainable_params <= run.trainable_params
    rows = json.loads((bench.directory / value / run.run_id / "adapter" / "allocation.json").read_text())["modules"]
    assert len({row["rank"] for row in rows}) > 1
    assert read_importance(bench.directory / value / run.run_id / "importance.json", {value})[1].keys() >= {
        row["module"] for row in rows
    }


def test_what_was_measured_is_read_from_then_on(bench, monkeypatch):
    from rankrl.sweep import measuring

    run = run_of("eva")
    first = bench.start(run)
    monkeypatch.setattr(measuring, "measure", None)
    again = bench.start(run)
    assert all(torch.equal(first.rows[m], again.rows[m]) for m in first.rows)
    assert again.diagnostics == first.diagnostics
    with pytest.raises(TypeError):
        bench.start(run_of("eva", "seeds=[1]"))


def test_the_first_step_is_measured_once_and_sets_the_rate(bench, monkeypatch):
    """Of rank 1, and of the reference rank, which is not in the grid."""
    from rankrl.sweep import bench as module

    words = ("rules.lr.rule=measured", "ranks=[1]", "seeds=[0]", "steps=1", "scale.sampling.eval_samples=1")
    run = runs_of("demo", *words, "name=measured")[0]
    found = bench.first_steps(run)
    assert [*found.ranks] == [1, 32] and {len(step.kl) for step in found.ranks.values()} == {4}
    row, reference = found.rows()
    assert 1.2 < row["kl_ratio"] < 2.2 and 5 < row["grad_norm"] / reference["grad_norm"] < 7
    assert row["kl_at_rule"] == pytest.approx(reference["kl_first_step"], rel=0.1)
    assert row["captured_energy"] == pytest.approx(1 / 256, rel=0.5)
    monkeypatch.setattr(module, "measure_first_steps", None)  # from now on it is read
    assert bench.first_steps(run) == found
    result = bench.attempt(run, attempts=1)
    assert result.status == "finished", result
    derived = yaml.safe_load((bench.directory / "measured" / run.run_id / "run.yaml").read_text())["derived"]["lr"]
    assert derived["value"] == found.rate(1) < 1e-3 and derived["ci95"] == [*found.rate_ci95(1)]
