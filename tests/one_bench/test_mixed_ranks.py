"""Adapters with mixed ranks, 0 to 5, in trainer and engine at scale=nano."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_allocation import mixed_run, ranks_of, run_table

from rankrl.recipe.rank_table import params, read_table


def test_the_mixed_run_has_ranks_0_to_5():
    rows, shapes = run_table(*mixed_run())
    assert {*ranks_of(rows, shapes).values()} == {0, 1, 2, 3, 4, 5}


@pytest.mark.pipeline
def test_mixed_ranks_train_stop_and_resume(bench, monkeypatch):
    """The engine serves the trained adapter. After a stop, the table comes from the checkpoint."""
    from rankrl.ppo.loop import RunTrainer
    from rankrl.sweep import training

    run, importance = mixed_run()
    directory, step = bench.directory / "demo" / run.run_id, RunTrainer.step
    monkeypatch.setattr(training, "importance", lambda *_: importance)
    monkeypatch.setattr(RunTrainer, "step", lambda self, at: [step(self, at), (directory / "STOP").touch()][0])
    assert bench.attempt(run, attempts=1) is None
    monkeypatch.setattr(RunTrainer, "allocate", None)
    monkeypatch.setattr(RunTrainer, "step", step)
    result = bench.attempt(run, attempts=1)
    assert result.status == "finished", result
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["sync_gap_nats"] < 0.01 and line["grad_norm"] > 0 for line in lines)
    rows, _ = run_table(run, importance)
    assert read_table(directory / "adapter" / "allocation.json") == rows
    assert result.trainable_params == params(rows) < run.trainable_params
    assert lines[-1]["sync_bytes"] == 4 * params(rows)
    assert "rank 0 to 5, by module" in (directory / "adapter" / "README.md").read_text()


UNFOLDED = {
    "folding switched off": lambda own: 1.0,
    "one scale for all modules, as vLLM reads a file": lambda own: 16 / 5,
}


@pytest.mark.pipeline
@pytest.mark.parametrize("scale", UNFOLDED.values(), ids=UNFOLDED)
def test_the_canary_catches_wrong_scales_of_modules(bench, scale):
    import ray
    import torch

    from rankrl.ppo.canary import SyncError
    from rankrl.ppo.loop import RunTrainer
    from rankrl.ppo.serving import unpack

    class Faulty(RunTrainer):
        def sync(self):
            payload = ray.get(self.policy.payload())
            tensors = unpack(payload.names, payload.shapes, payload.dtype, payload.data)
            for row in self.table:
                own = row.alpha / row.rank
                tensors[f"base_model.model.{row.module}.lora_B.weight"] *= scale(own) / own
            data = torch.cat([tensor.flatten() for tensor in tensors.values()]).numpy().tobytes()
            wrong = dataclasses.replace(payload, data=data)
            return ray.get([e.load_adapter.remote(self.adapter_id, wrong) for e in self.services.engines])[0].size_bytes

    run, importance = mixed_run()
    trainer = Faulty(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
    trainer.attach(trainer.allocate(importance))
    with pytest.raises(SyncError, match="adapter sync"):
        for step in range(10):
            trainer.step(step)
    trainer.detach()
