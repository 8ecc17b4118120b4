"""ZeRO-2 on one worker and ZeRO-3 on two start alike and take the same first step."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from conftest import ROOT, runs_of

from rankrl.adapter.start import Start
from rankrl.recipe.init_section import Init

pytestmark = pytest.mark.pipeline

ONE_UPDATE = ("ranks=[8]", "seeds=[0]", "updates_per_rollout=1", "rules.warmup=0")
ZERO3 = (
    "scale.placement.policy_per_node=2",
    f"scale.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}",
    "scale.placement.micro_batch=32",
)
ONE_BASE = ("scale.placement.critic_per_node=0",)


@dataclass
class Begun:
    """The first two steps of a run."""

    starts: list[Start]
    """The start of the adapter by each of `INITS`."""
    weights: list[dict[str, torch.Tensor]]
    """Each worker's adapter after one step."""
    line: dict[str, Any]
    """Metrics of step 1."""
    next_line: dict[str, Any]
    then: Any = None
    """What else was done on its services."""


SAMPLED = {"prompts": 16, "samples_per_prompt": 8}
INITS = [
    *(Init(method) for method in ("rlpo", "rlmo", "pissa", "olora", "olora_tail")),
    Init("eva", **SAMPLED),
    Init("pg_subspace", **SAMPLED),
    Init("pg_subspace", fisher=True, off_principal=4, **SAMPLED),
]


def begin(directory, *overrides, inits=(), then=lambda bench: None) -> Begun:
    from rankrl.sweep.local import prepare_process

    prepare_process(4)
    from rankrl.ppo.loop import RunTrainer
    from rankrl.sweep.bench import Bench

    run = runs_of("demo", *ONE_UPDATE, *overrides)[0]
    with Bench([run], directory) as bench:
        starts = [bench.start(run, init) for init in inits]
        trainer = RunTrainer(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
        trainer.attach()
        line = trainer.step(0)
        weights = ray.get(bench.services.policy.async_run_method("weights", run.run_id))
        next_line = trainer.step(1)
        trainer.detach()
        return Begun(starts, weights, line, next_line, then(bench))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Begun:
    """ZeRO-2, one policy and one value worker."""
    return begin(tmp_path_factory.mktemp("zero2"), inits=INITS)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Begun:
    """ZeRO-3 on two policy and two value workers."""
    return begin(tmp_path_factory.mktemp("zero3"), *ZERO3, inits=INITS)


@pytest.fixture(scope="module")
def sharded_once(tmp_path_factory) -> Begun:
    """ZeRO-3 on two workers, where policy and value share one base; then a worker is killed."""
    return begin(tmp_path_factory.mktemp("zero3"), *ZERO3, *ONE_BASE, then=worker_killed)


def worker_killed(bench) -> tuple[str, str]:
    """(status, output) of a run of which one of two workers is killed before its last step."""
    from rankrl.ppo.loop import RunTrainer

    run = runs_of("demo", "ranks=[1]", "seeds=[0]", "steps=4", "checkpoint_every=2", *ZERO3, *ONE_BASE)[0]
    step, killed = RunTrainer.step, []

    def kill_once(self, index):
        if index == 3 and not killed:
            killed.append(ray.kill(self.services.policy.workers[1]))
        return step(self, index)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        patch.setattr(RunTrainer, "step", kill_once)
        try:
            status = bench.attempt(run, attempts=2).status
        except Exception as error:  # is the kill's test's to tell
            status = repr(error)
        return status, output.getvalue()


def test_policy_and_value_on_one_base_are_the_same_run(plain, tmp_path):
    """Equal bit for bit, also in the second step, which depends on the values of the first."""
    shared = begin(tmp_path, *ONE_BASE)
    assert all(torch.equal(weights, shared.weights[0][name]) for name, weights in plain.weights[0].items())
    for ours, theirs in ((shared.line, plain.line), (shared.next_line, plain.next_line)):
        assert {k: v for k, v in ours.items() if not k.endswith("_s")} == {
            k: v for k, v in theirs.items() if not k.endswith("_s")
        }


def test_policy_value_and_engine_on_one_gpu_are_the_same_run(plain, tmp_path):
    """All three on one pretended GPU, of which each takes a third."""
    colocated = begin(tmp_path, "scale.placement.colocated=true", "scale.placement.engine_memory=0.5")
    assert all(torch.equal(weights, colocated.weights[0][name]) for name, weights in plain.weights[0].items())
    assert colocated.line["grad_norm"] == plain.line["grad_norm"]


@pytest.mark.parametrize("other", ["sharded", "sharded_once"])
def test_zero2_and_zero3_agree_after_the_first_update(plain, other, request):
    found = request.getfixturevalue(other)
    whole, (left, right) = plain.weights[0], found.weights
    for name in left:
        assert torch.equal(left[name], right[name])  # both workers hold the same adapter
    assert found.line["accuracy"] == plain.line["accuracy"]  # the same tokens were sampled
    assert found.line["grad_norm"] == pytest.approx(plain.line["grad_norm"], rel=0.02)
    moved = {
        name: torch.cat([w[name].flatten() for w in (whole, left)]).view(2, -1)
        for name in whole
        if name.endswith("lora_B")
    }
    cosine = torch.nn.functional.cosine_similarity(*torch.cat(list(moved.values()), dim=1), dim=0)
    assert cosine > 0.98  # Adam's first step is a sign, so entries with a gradient near zero may flip
    for name in ("ess_frac", "ratio_max", "delta_norm", "entropy_p10", "entropy_p50", "entropy_p90", "advantage_sd"):
        assert found.line[name] == pytest.approx(plain.line[name], rel=0.02), name
    assert -1 < found.line["grad_cosine"] < 1
    assert found.next_line["kl_step"] > 0 and found.next_line["sync_gap_nats"] < 0.01


def test_sharded_bases_give_the_starts_of_whole_ones(plain, sharded):
    """A naive implementation would see empty weights or half of the samples."""
    for init, ours, theirs in zip(INITS, plain.starts, sharded.starts, strict=True):
        for module, rows in ours.rows.items():
            assert rows.shape == (8, rows.shape[1]) and theirs.rows[module].norm() > 0
            assert torch.allclose(rows, theirs.rows[module], atol=2e-3), (init.method, module)
        for module, values in ours.values.items():
            assert theirs.values[module] == pytest.approx(values, rel=1e-2, abs=1e-6)


def adam_path(rank: int, address: str, results) -> None:
    """Optimizer steps on two workers, unsharded and then sharded; worker 0 reports both."""
    import torch.distributed as dist

    from rankrl.ppo import cpu

    cpu.install()
    from rankrl.ppo import strategy

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for shard_from in (10**9, 0):
        strategy.SHARD_FROM = shard_from
        found = three_steps(strategy.AdapterOptimizer, rank)
        if rank == 0:
            results.put(found)


ADAM = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)


def three_steps(kind, rank: int):
    """Three optimizer steps, saved and loaded after the second: (parameters held, weights)."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(3)]
    data = torch.randn(3, 2, 3)

    def optimizer():
        groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.3}]
        return kind(groups, ADAM, max_norm=1.0, accumulate=1)

    current = optimizer()
    held = sum(p.numel() for group in current.local.param_groups for p in group["params"])
    for step in range(3):
        if step == 2:
            saved, current = current.state_dict(), optimizer()
            current.load_state_dict(saved)
        sum((w @ data[step, rank]).square().sum() for w in weights).backward()
        current.micro_step()
        current.adam.param_groups[0]["lr"] *= 0.5  # as a schedule does
    return held, [w.detach().numpy() for w in weights]


def test_a_sharded_optimizer_takes_the_same_steps(tmp_path):
    import torch.multiprocessing as mp

    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(adam_path, (f"file://{tmp_path}/group", results), nprocs=2)
    (whole, plain), (part, sharded) = results.get(), results.get()
    assert (whole, part) == (36, 24)
    for ours, theirs in zip(sharded, plain, strict=True):
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-6)


def spectral_path(rank: int, address: str, results) -> None:
    """Two spectral steps on two workers, each on data of its own; both report (factors, means)."""
    import torch.distributed as dist

    from rankrl.ppo import cpu

    cpu.install()
    from rankrl.ppo import strategy
    from rankrl.ppo.spectral import Spectral

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    strategy.SHARD_FROM = 0  # where AdamW would be sharded
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(2, 5)), torch.nn.Parameter(torch.randn(4, 2))
    data, goal = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 4)
    groups = [{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.1}]
    optimizer = strategy.AdapterOptimizer(groups, ADAM, 1.0, 1, other=Spectral(groups, [(a, b, 2.0)], 0.9, 0.0))
    for step in range(2):
        (data[step, rank] @ a.T @ b.T - goal[step, rank]).square().sum().backward()
        optimizer.micro_step()
    results.put((rank, optimizer.sharded, [p.detach().numpy() for p in (a, b)]))


def test_two_workers_take_the_spectral_step_of_their_mean_gradient(tmp_path):
    import torch.multiprocessing as mp

    from rankrl.ppo.spectral import Spectral

    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(spectral_path, (f"file://{tmp_path}/group", results), nprocs=2)
    (_, sharded, left), (_, _, right) = sorted((results.get() for _ in "ab"), key=lambda found: found[0])
    assert not sharded and all((ours == theirs).all() for ours, theirs in zip(left, right, strict=True))
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(2, 5)), torch.nn.Parameter(torch.randn(4, 2))
    data, goal = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 4)
    alone = Spectral([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.1}], [(a, b, 2.0)], 0.9, 0.0)
    for step in range(2):
        (data[step].flatten(0, 1) @ a.T @ b.T - goal[step].flatten(0, 1)).square().sum().div(2).backward()
        torch.nn.utils.clip_grad_norm_([a, b], 1.0)
        alone.step()
        alone.zero_grad()
    for ours, theirs in zip(left, (a, b), strict=True):
        assert torch.allclose(torch.tensor(ours), theirs, atol=1e-5)


def test_a_killed_worker_of_two_is_replaced(sharded_once):
    """The old process group must free its resources, or the new one would wait for them forever."""
    status, output = sharded_once.then
    assert status == "finished" and "r1-b16-s0: resumed at step 2" in output, (status, output)
