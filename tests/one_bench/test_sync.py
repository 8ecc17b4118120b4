"""What the engine acts with, and how it differs from the trainer, in the real pipeline at nano."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import ray
import torch

pytestmark = pytest.mark.pipeline


def faulty(fault):
    """A trainer class whose sync sends something other than its adapter."""
    from rankrl.ppo.loop import RunTrainer
    from rankrl.ppo.serving import Payload

    class Faulty(RunTrainer):
        sent: Payload | None = None

        def sync(self):
            payload = ray.get(self.policy.payload())
            wrong, self.sent = fault(payload, self.sent or payload), payload
            return ray.get([e.load_adapter.remote(self.adapter_id, wrong) for e in self.services.engines])[0].size_bytes

    return Faulty


def edited(payload, edit):
    """`payload` with `edit(name, tensor)` applied to every tensor."""
    from rankrl.ppo.serving import unpack

    tensors = unpack(payload.names, payload.shapes, payload.dtype, payload.data)
    flat = torch.cat([edit(name, tensor.clone()).flatten() for name, tensor in tensors.items()])
    return dataclasses.replace(payload, data=flat.view(torch.uint8).numpy().tobytes())


def corrupt(name, tensor):
    return tensor.flip(0) if name.endswith("layers.1.mlp.down_proj.lora_B.weight") else tensor


def rescale(name, tensor):
    return 2 * tensor if name.endswith("layers.1.mlp.gate_proj.lora_B.weight") else tensor


FAULTS = {
    "left on the base": (lambda now, before: edited(now, lambda name, t: torch.zeros_like(t)), "the base model"),
    "one sync behind": (lambda now, before: before, "the previous step"),
    "one corrupted tensor": (lambda now, before: edited(now, corrupt), "adapter sync"),
    "one wrong module scale": (lambda now, before: edited(now, rescale), "adapter sync"),
}


@pytest.mark.parametrize(("fault", "says"), FAULTS.values(), ids=FAULTS)
def test_an_engine_without_the_adapter_stops_the_run_within_ten_steps(attach, fault, says):
    from rankrl.ppo.canary import SyncError

    trainer = attach("ranks=[8]", trainer_class=faulty(fault))
    with pytest.raises(SyncError, match=says):
        for step in range(10):
            trainer.step(step)


def loud(trainer_class):
    """A trainer class whose engine has a mean numerics gap of 0.06 nats a token."""

    class Loud(trainer_class):
        def check_engine(self, step, logprobs):
            noise = np.random.default_rng(step).normal(0, 0.06 * (np.pi / 2) ** 0.5, len(logprobs.engine))
            return super().check_engine(step, logprobs._replace(engine=logprobs.engine + noise))

    return Loud


@pytest.mark.parametrize("rank", [1, 32])
def test_a_loud_engine_passes_and_a_stale_one_as_loud_does_not(attach, rank):
    from rankrl.ppo.canary import SyncError
    from rankrl.ppo.loop import RunTrainer

    words = (f"ranks=[{rank}]", "scale.max_sync_gap_nats=0.2")
    right = attach(*words, trainer_class=loud(RunTrainer))
    lines = [right.step(step) for step in range(10)]
    assert all(0.05 < line["sync_gap_nats"] < 0.07 for line in lines)
    right.detach()
    stale = attach(*words, trainer_class=loud(faulty(FAULTS["one sync behind"][0])))
    with pytest.raises(SyncError, match="the previous step"):
        for step in range(10):
            stale.step(step)


def test_the_first_update_on_a_rollout_starts_from_a_ratio_of_exactly_1(attach):
    """Those before it come from the same micro-batches, so not one bit is rounded apart."""
    from rankrl.ppo.loop import RunTrainer

    class Watched(RunTrainer):
        def update(self, step, kl_coef):
            self.statuses.append(super().update(step, kl_coef))
            return self.statuses[-1]

    Watched.statuses = []
    trainer = attach("updates_per_rollout=1", trainer_class=Watched)
    for step in range(4):
        trainer.step(step)
    assert [status["ppo_kl"] for status in Watched.statuses] == [0.0] * 4
    assert all(status["ppo_clip_ratio"] == 0.0 and status["actor_grad_norm"] > 0 for status in Watched.statuses)


def test_a_planted_mismatch_of_engine_and_trainer_is_corrected_and_counted(attach):
    from rankrl.ppo.loop import RunTrainer

    class Apart(RunTrainer):
        def rollout(self, step):
            rng = np.random.default_rng(step)
            return [
                dataclasses.replace(s, logprobs=(s.logprobs + rng.normal(0, 0.05, len(s.logprobs))).tolist())
                for s in super().rollout(step)
            ]

    bounds = ("correction.method=token_mask", "correction.low=0.95", "correction.high=1.05")
    trainer = attach(*bounds, "scale.max_sync_gap_nats=0.2", trainer_class=Apart)
    lines = [trainer.step(step) for step in range(4)]
    assert np.mean([line["corrected_frac"] for line in lines]) == pytest.approx(0.317, abs=0.04)
    assert np.mean([line["engine_ratio_mean"] for line in lines]) == pytest.approx(1.00125, abs=0.004)


def test_a_changed_byte_is_caught_by_the_digests_of_a_sync(attach):
    from rankrl.ppo.canary import SyncError

    trainer = attach("ranks=[8]")
    payload = ray.get(trainer.policy.payload())
    data = bytearray(payload.data)
    data[len(data) // 2] ^= 1
    trainer.policy.payload = lambda: ray.put(dataclasses.replace(payload, data=bytes(data)))
    says = f"worker 0 of engine 0 holds tensors with SHA-256 [0-9a-f]{{64}}, the trainer has sent {payload.digest}"
    with pytest.raises(SyncError, match=says):
        trainer.sync()
