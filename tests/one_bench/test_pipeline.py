"""The real pipeline at scale=nano: Ray, DeepSpeed, vLLM and OpenRLHF, on services that the tests
share."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import yaml
from conftest import runs_of

from rankrl.ppo.instruments import READINGS

pytestmark = pytest.mark.pipeline


def worker_state(trainer):
    return ray.get(trainer.services.policy.async_run_method("state", trainer.run.run_id)[0])


def test_the_base_has_headroom(bench):
    from rankrl.report.statistics.passk import pass_at_k

    frame = pd.DataFrame(
        [(s.item.item_id, s.verdict.correct) for s in bench.base_samples()], columns=["item", "correct"]
    )
    counts = frame.groupby("item")["correct"].sum()
    assert len(counts) == 252 and len(frame) == 252 * 16
    assert 0.15 <= counts.map(lambda c: pass_at_k(16, c, 1)).mean() <= 0.45
    assert counts.map(lambda c: pass_at_k(16, c, 16)).mean() >= 0.85
    cached = list((bench.directory / "base").glob("nano-*.parquet"))
    assert len(cached) == 1


def test_one_seed_repeats_itself(attach):
    """Prompts, initial adapter and first rollout are identical. The rest is compared within the
    tolerance that was observed."""
    seen = []
    for _ in range(2):
        trainer = attach("ranks=[8]")
        samples = trainer.rollouts.rollout(trainer.adapter_id, 0, 0, trainer.train_items[:16], 8)
        lines = [trainer.step(step) for step in range(2)]
        seen.append(
            (worker_state(trainer)["weights"], [(s.item.item_id, s.index, s.response_ids) for s in samples], lines)
        )
        trainer.detach()
    (_, first, lines), (_, second, again) = seen
    assert first == second
    for name in ("accuracy", "reward_mean", "tokens_total"):
        assert lines[0][name] == again[0][name]
    assert lines[0]["grad_norm"] == pytest.approx(again[0]["grad_norm"], rel=1e-3)


def test_ranks_of_one_seed_share_the_first_row_of_every_a(attach):
    one, eight = (worker_state(attach(f"ranks=[{rank}]"))["weights"] for rank in (1, 8))
    rows = [name for name in one if name.endswith("lora_A")]
    assert len(rows) == 14
    for name in rows:
        assert torch.equal(one[name][0], eight[name][0])
        assert torch.count_nonzero(one[name.replace("lora_A", "lora_B")]) == 0


def one_batch(trainer, step):
    """A rollout of two prompts, as a batch of OpenRLHF."""
    samples = trainer.rollouts.rollout(trainer.adapter_id, 0, step, trainer.train_items[:2], 8)
    return trainer.experience_maker.split_rollout_samples(samples)[0]


def worker_logprobs(group, batch):
    fields = {key: [getattr(batch, key)] for key in ("sequences", "action_mask", "attention_mask")}
    return ray.get(group.async_run_method_batch("forward", **fields))[0][0]


def test_reference_is_the_base_and_the_saved_adapter_the_policy(attach, bench, tmp_path):
    """Equal bit for bit: the policy without its adapter and OpenRLHF's own actor on a fresh base;
    the saved adapter in PEFT and the worker."""
    from openrlhf.models import Actor
    from peft import PeftModel

    from rankrl.adapter.save import save_adapter
    from rankrl.ppo.prefixes import SharedPrefixes

    trainer = attach("ranks=[8]")
    for step in range(3):
        trainer.step(step)
    batch = one_batch(trainer, 3)
    reference = worker_logprobs(trainer.reference, batch)
    policy = worker_logprobs(trainer.policy, batch)
    fresh = Actor(bench.services.model_path, attn_implementation="sdpa").float()
    with torch.no_grad():
        plain = fresh(batch.sequences, batch.action_mask, batch.attention_mask)
        SharedPrefixes(fresh.model.base_model)
        expected = fresh(batch.sequences, batch.action_mask, batch.attention_mask)
    assert torch.equal(reference, expected)
    assert torch.allclose(expected, plain, atol=5e-5, rtol=0)
    assert (policy - expected).abs().max() > 0.01

    facts = dict.fromkeys(("rank", "run_id", "sweep", "steps"), "x") | dict.fromkeys(
        ("params", "share", "final", "start", "gain"), 0
    )
    config, tensors = ray.get(trainer.policy.async_run_method("peft_files")[0])
    save_adapter(tmp_path / "adapter", config, tensors, "embedded:nano", facts)
    fresh.model = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(fresh(batch.sequences, batch.action_mask, batch.attention_mask), policy)


def test_bytes_sent_are_the_adapters(attach):
    trainer = attach("ranks=[1]")
    assert trainer.sync() == 4 * trainer.run.trainable_params  # fp32, not padded to the engine's rank


def test_a_run_continues_from_its_checkpoint_as_if_never_stopped(attach, tmp_path):
    from rankrl.ppo.records import Record

    steady = attach("ranks=[8]")
    lines = [steady.step(step) for step in range(4)]
    steady.detach()
    stopped = attach("ranks=[8]")
    for step in range(2):
        stopped.step(step)
    record = Record(tmp_path, stopped.run)
    record.save_checkpoint(stopped.state(2))
    stopped.detach()
    record.wait_for_checkpoint()
    size = (tmp_path / "checkpoint" / "state.pt").stat().st_size
    assert size < 4 * (4 * (8 + 32) * 7936 + 100_000)  # weights, two moments and the previous adapter; never the base

    resumed = attach("ranks=[8]")
    resumed.restore(record.load_checkpoint())
    assert resumed.tokens_total == lines[1]["tokens_total"]
    again = [resumed.step(step) for step in (2, 3)]
    assert [line["accuracy"] for line in again] == [line["accuracy"] for line in lines[2:]]
    assert [line["tokens_total"] for line in again] == [line["tokens_total"] for line in lines[2:]]
    for name in ("lr", "kl_coef", "kl_ref", "kl_step", "grad_norm", "entropy"):
        assert [line[name] for line in again] == pytest.approx(
            [line[name] for line in lines[2:]], rel=0.02, abs=1e-4
        ), name


METRICS = {
    "step",
    "tokens_total",
    "reward_mean",
    "accuracy",
    "verdict_correct",
    "verdict_wrong",
    "verdict_unparsable",
    "verdict_timeout",
    "kl_ref",
    "kl_step",
    "kl_coef",
    "policy_loss",
    "value_loss",
    "explained_variance",
    "value_mean",
    "critic_lr",
    "critic_grad_norm",
    "clip_low",
    "clip_high",
    "clip_frac",
    "engine_ratio_mean",
    "corrected_frac",
    "entropy",
    "lr",
    "grad_norm",
    "kl_stopped",
    "norm_skipped",
    "response_tokens_mean",
    "truncated_frac",
    "uniform_group_frac",
    "advantage_sd",
    *READINGS,
    "sync_bytes",
    "sync_gap_nats",
    "rollout_s",
    "experience_s",
    "update_s",
    "sync_s",
    "step_s",
}
"""The keys of a line of metrics.jsonl of a run with one critic."""


def test_a_run_leaves_the_directory_of_the_contract(bench):
    run = runs_of("demo", "ranks=[8]", "seeds=[5]", "steps=3", "eval_every=2")[0]
    result = bench.attempt(run, attempts=1)
    assert result.status == "finished", result
    directory = bench.directory / "demo" / run.run_id
    assert sorted(p.name for p in directory.iterdir()) == [
        "adapter",
        "evals.parquet",
        "metrics.jsonl",
        "result.json",
        "rollouts.jsonl",
        "run.yaml",
        "tb",
    ]
    assert json.loads((directory / "result.json").read_text()) == result.as_dict()
    assert set(result.as_dict()) == {
        "run_id",
        "arm",
        "rank",
        "batch_size",
        "seed",
        "status",
        "base_score",
        "final_score",
        "best_score",
        "gain",
        "tokens_total",
        "steps",
        "wall_s",
        "trainable_params",
        "base_params",
    }
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) == METRICS
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert all(line["sync_gap_nats"] < 0.01 for line in lines)
    assert all(abs(line["engine_ratio_mean"] - 1) < 1e-5 and line["corrected_frac"] == 0 for line in lines)
    assert result.tokens_total == lines[-1]["tokens_total"] > lines[0]["tokens_total"] > 0
    check_evaluations(directory, result)
    check_training_samples(directory, bench.train_items)
    check_record(directory, run)
    check_tensorboard(directory)
    card = (directory / "adapter" / "README.md").read_text()
    assert "rank 8" in card and "More Information Needed" not in card


def check_evaluations(directory, result):
    rows = pd.read_parquet(directory / "evals.parquet")
    names = ["step", "item_id", "source", "sample", "correct", "verdict", "boxed", "response_tokens", "response"]
    assert list(rows.columns) == names
    assert (rows["correct"] == (rows["verdict"] == "correct")).all()
    assert rows.groupby("step").size().to_dict() == {0: 252 * 16, 2: 252 * 8, 3: 252 * 8}
    scores = rows.groupby("step")["correct"].mean()
    assert result.base_score == pytest.approx(scores[0])
    assert result.final_score == pytest.approx(scores[3])
    assert result.best_score == pytest.approx(max(scores[2], scores[3]))
    assert result.gain == pytest.approx(scores[3] - scores[0])
    kept = rows[rows["response"].notna()]
    assert kept.groupby("step").size().to_dict() == {0: 252, 3: 252} and set(kept["sample"]) == {0}
    assert ((kept["response"] != "") == (kept["response_tokens"] > 1)).all()
    assert kept["response"].str.contains("boxed").mean() > 0.5


def check_training_samples(directory, items):
    """Four prompts a step. Their texts give the verdict, and their reward is the shaped one."""
    from rankrl.reward.grade import Grader

    lines = [json.loads(line) for line in (directory / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 4
    asked = {item.item_id: (item.source, item.prompt, item.answer) for item in items}
    assert all((line["source"], line["prompt"], line["gold"]) == asked[line["item_id"]] for line in lines)
    with closing(Grader()) as grader:
        verdicts = grader.grade([line["response"] for line in lines], [line["gold"] for line in lines])
    assert [verdict.outcome for verdict in verdicts] == [line["verdict"] for line in lines]
    assert all((line["reward"] > 0.5) == (line["verdict"] == "correct") for line in lines)
    assert all(np.isfinite(line["advantage"]) for line in lines) and len({line["advantage"] for line in lines}) > 1


def check_record(directory, run):
    record = yaml.safe_load((directory / "run.yaml").read_text())
    assert record["derived"]["lr"]["value"] == pytest.approx(run["lr"])
    assert record["derived"]["lr"]["source"]
    assert record["versions"]["openrlhf"] == "0.11.2"
    assert set(record["data_revision"]) == {"train", "evaluation"}


def check_tensorboard(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        "reward/reward_mean",
        "kl/kl_ref",
        "ppo/lr",
        "rollout/tokens_total",
        "sync/sync_gap_nats",
        "time/step_s",
        "eval/score",
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("eval/score")] == [0, 2, 3]
    assert {"recipe/text_summary", "run/text_summary"} <= set(tags["tensors"])
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(
        events.summary_metadata
    )


def test_a_failing_run_is_recorded_and_the_next_one_trains(bench, monkeypatch):
    from rankrl.ppo.loop import RunTrainer

    broken, sound = runs_of("demo", "ranks=[1]", "seeds=[6,7]", "steps=1")
    step = RunTrainer.step
    monkeypatch.setattr(RunTrainer, "step", lambda self, at: step(self, at) if self.run is sound else 1 / 0)
    result = bench.attempt(broken, attempts=1)
    assert (result.status, result.gain) == ("failed", None)
    assert result.error == "ZeroDivisionError: division by zero"
    assert bench.attempt(sound, attempts=1).status == "finished"


def interfere(monkeypatch, at, what):
    """Calls `what(trainer)` once, before PPO step `at`."""
    from rankrl.ppo.loop import RunTrainer

    step, done = RunTrainer.step, []

    def interrupted(self, index):
        if index == at and not done:
            done.append(what(self))
        return step(self, index)

    monkeypatch.setattr(RunTrainer, "step", interrupted)


def test_a_stop_file_saves_the_run_and_a_corrupt_checkpoint_restarts_it(bench, monkeypatch, capsys):
    run = runs_of("demo", "ranks=[1]", "seeds=[8]", "steps=3")[0]
    directory = bench.directory / "demo" / run.run_id
    interfere(monkeypatch, 1, lambda trainer: (directory / "STOP").touch())
    assert bench.attempt(run, attempts=1) is None
    assert not (directory / "STOP").exists() and not (directory / "result.json").exists()
    saved = directory / "checkpoint" / "state.pt"
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    assert bench.attempt(run, attempts=1).status == "finished"
    assert "checkpoint unreadable" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_run_without_a_critic_leaves_the_value_worker_alone(attach, bench):
    trainer = attach("ranks=[1]", "advantage.method=group_mean", "critic.warmup_steps=1", "rules.warmup=0")
    line = trainer.step(0)
    assert line["grad_norm"] > 0 and "value_loss" not in line and set(trainer.state(1)) >= {"policy", "step"}
    assert "critic" not in trainer.state(1)
    with pytest.raises(ray.exceptions.RayTaskError, match="KeyError"):
        ray.get(bench.services.critic.async_run_method("state", f"{trainer.run.run_id}-value"))


def test_critic_warmup_leaves_the_policy_where_it_is(attach):
    trainer = attach("ranks=[1]", "critic.warmup_steps=1", "rules.warmup=0")
    start = worker_state(trainer)["weights"]
    assert not {*READINGS} & {*trainer.step(0)}
    assert all(torch.equal(start[name], tensor) for name, tensor in worker_state(trainer)["weights"].items())
    assert worker_state(trainer)["scheduler"]["last_epoch"] == 0  # its own warm-up starts afterwards
    trainer.step(1)
    assert worker_state(trainer)["scheduler"]["last_epoch"] == trainer.run.recipe.updates_per_rollout
    assert not all(torch.equal(start[name], tensor) for name, tensor in worker_state(trainer)["weights"].items())


def test_brakes_leave_out_what_they_stop_and_change_nothing_else(attach):
    """Of two minibatches the first is trained on, in the first step of all; the second is not."""
    trainer = attach("ranks=[1]", "brakes.max_kl=1e-9")
    start = worker_state(trainer)["weights"]
    line = trainer.step(0)
    assert (line["kl_stopped"], line["norm_skipped"]) == (1, 0)
    braked = worker_state(trainer)
    assert any(not torch.equal(start[name], tensor) for name, tensor in braked["weights"].items())
    assert braked["scheduler"]["last_epoch"] == 2 and braked["optimizer"]["adam"]["state"][0]["step"] == 1
    trainer.detach()
    found = []
    for words in ((), ("brakes.max_kl=1e9", "brakes.max_norm_ratio=1e9")):
        trainer = attach("ranks=[1]", *words)
        lines = [trainer.step(step) for step in range(2)]
        found.append(({k: v for k, v in lines[-1].items() if not k.endswith("_s")}, worker_state(trainer)["weights"]))
        assert [len(worker_state(trainer)["optimizer"]["norms"]), lines[-1]["kl_stopped"]] == [4 * bool(words), 0]
        trainer.detach()
    (free, weights), (loose, same) = found
    assert free == loose and all(torch.equal(weights[name], same[name]) for name in weights)
