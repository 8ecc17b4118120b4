"""Packed micro-batches of a number of tokens: pure parts, and training that equals that of padded
micro-batches on two workers."""

import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, runs_of
from tiny_models import FAMILIES, tiny_model


def test_micro_batches_of_tokens(stack):
    """Both shares get two, since the second needs two."""
    from rankrl.ppo.packing import within_tokens

    lengths = [5, 3, 2, 4, 8, 7, 1, 6]
    assert within_tokens([[0, 1, 2, 3], [4, 5, 6, 7]], lengths, 14) == [[[1, 3], [0, 2]], [[5, 7], [4, 6]]]
    assert within_tokens([[0, 1, 2, 3]], lengths, 14) == [[[0, 1, 2, 3]]]
    assert within_tokens([[4], [5]], lengths, 7) == [[[4]], [[5]]]  # a sample that is longer than allowed is alone


def test_no_micro_batch_has_more_tokens_than_allowed(stack):
    from rankrl.ppo.packing import within_tokens

    draw = torch.Generator().manual_seed(0)
    for most in (40, 64, 100):
        lengths = torch.randint(1, 33, (96,), generator=draw).tolist()
        shares = [list(range(i, i + 24)) for i in range(0, 96, 24)]
        found = within_tokens(shares, lengths, most)
        assert [sorted(i for part in parts for i in part) for parts in found] == shares
        assert len({len(parts) for parts in found}) == 1
        assert max(sum(lengths[i] for i in part) for parts in found for part in parts) <= most


def test_shares_of_steps_and_workers(stack):
    """Two policy workers and three value workers: six shares of an optimizer step."""
    from rankrl.ppo.packing import shares_of_steps

    found = shares_of_steps(list(range(24)), 2, 2, 3)
    assert found == [[i, i + 1] for i in range(0, 24, 2)]
    assert shares_of_steps([3, 1, 2, 0], 2, 1, 1) == [[3, 1], [2, 0]]


def test_the_loader_gives_packed_micro_batches_in_order(stack):
    """Upstream's loader shuffles, and would mix those of two optimizer steps."""
    from rankrl.ppo.replay import ReplayBuffer

    for in_order in (True, False):
        buffer = ReplayBuffer(in_order)
        buffer.items += [f"micro-batch {i}" for i in range(20)]
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(buffer, batch_size=1, shuffle=True, collate_fn=buffer.collate_fn)
        for _ in range(2):  # two epochs
            given = list(loader)
            assert sorted(given) == sorted(buffer.items) and (given == buffer.items) == in_order


def test_micro_batches_are_spread_over_optimizer_steps(stack):
    """Six micro-batches and two steps: a step after every third."""
    import torch.distributed as dist

    from rankrl.ppo.strategy import AdapterOptimizer
    from rankrl.ppo.workers import RunState

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    adam = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = AdapterOptimizer([{"params": [weight], "lr": 0.1}], adam, max_norm=0.0)
    trainer = SimpleNamespace(replay_buffer=[None] * 6, strategy=SimpleNamespace(accumulated_gradient=1))
    RunState(SimpleNamespace(updates=2), trainer, optimizer, None, torch.zeros(0)).new_rollout()
    weight.grad = torch.ones(1)
    assert [optimizer.micro_step() for _ in range(6)] == [False, False, True] * 2
    assert trainer.strategy.accumulated_gradient == 3


WRONG = {
    "at least 32": ("micro_batch_tokens=31", "model.share_prefixes=false"),
    "null with model.share_prefixes": ("micro_batch_tokens=64",),
    "allowed: 1 ": ("micro_batch_tokens=64", "micro_batch=2", "model.share_prefixes=false"),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_setting_that_cannot_be_is_told(said):
    words = [f"scale.{'' if '.' in word else 'placement.'}{word}" for word in ("micro_batch=1", *WRONG[said])]
    with pytest.raises(ValueError, match=said):
        runs_of("demo", *words)


def actor_of(path, rows):
    """The policy's actor on the model in directory `path`, without DeepSpeed."""
    from rankrl.ppo.actor import AdapterActor

    args = SimpleNamespace(
        ds=SimpleNamespace(attn_implementation="sdpa", param_dtype="bf16"),
        actor=SimpleNamespace(gradient_checkpointing_enable=False),
        rollout=SimpleNamespace(temperature=0.7),
    )
    strategy = SimpleNamespace(
        args=args,
        model=SimpleNamespace(dtype="float32"),
        rows=rows,
        prepare=lambda model: model,
        get_ds_eval_config=lambda: None,
    )
    actor = AdapterActor(str(path), args, strategy)
    actor.model.model.embed_tokens.requires_grad_()  # as adapters do, it makes hidden states need a gradient
    return actor


def ragged(vocabulary):
    """(sequences [B, T], action mask [B, A], attention mask [B, T]), padded on the right."""
    draw = torch.Generator().manual_seed(1)
    lengths_B, prompts_B = torch.tensor([9, 5, 12, 4]), torch.tensor([3, 2, 6, 3])
    positions_T = torch.arange(12)
    attention_BT = (positions_T < lengths_B[:, None]).long()
    action_BT = attention_BT * (positions_T >= prompts_B[:, None])
    return torch.randint(3, vocabulary, (4, 12), generator=draw) * attention_BT, action_BT[:, 1:], attention_BT


def logprobs_entropy_gradient(actor, batch, ours=True):
    sequences_BT, action_BA, attention_BT = batch
    heads, actor.heads = actor.heads, actor.heads if ours else ()
    logprobs_BA, output = actor(sequences_BT, action_BA, attention_BT, return_output=True, return_entropy=True)
    actor.heads = heads
    weights_BA = torch.linspace(-1, 1, logprobs_BA.numel()).view_as(logprobs_BA)
    weight = actor.model.model.embed_tokens.weight
    weight.grad = None
    (logprobs_BA * weights_BA).sum().backward()
    entropy_BA = output.entropy[:, -action_BA.shape[1] :] * action_BA
    return logprobs_BA.detach(), entropy_BA.detach(), weight.grad


ROUNDING = (1e-6, 1e-6, 2e-6)
"""Of log-probabilities and entropies, and of a gradient, which sums more: 1.2e-6 on some CPUs."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_moe"])
@pytest.mark.parametrize("at_once", ["whole", "three tokens"])
def test_log_probabilities_are_those_of_upstream(stack, tmp_path, monkeypatch, family, at_once):
    """Also packed, and a few logits at a time. Gemma caps what its head gives: upstream's own."""
    from rankrl.ppo import head
    from rankrl.ppo.packing import PackedRows

    if at_once != "whole":
        monkeypatch.setattr(head, "LOGITS_AT_ONCE", 3 * 384)
    changes = {"tie_word_embeddings": False, **(EXPERTS if family == "qwen3_moe" else {})}
    path, batch = tiny_model(family, tmp_path / family, **changes), ragged(384)
    plain = actor_of(path, lambda decoder: None)
    assert bool(plain.heads) == (family != "gemma2")
    told = logprobs_entropy_gradient(plain, batch, ours=False)
    assert told[0].abs().max() > 1 and told[2].norm() > 0.1
    for actor in (plain, actor_of(path, PackedRows)):
        for ours, theirs, rounding in zip(logprobs_entropy_gradient(actor, batch), told, ROUNDING, strict=True):
            assert (ours - theirs).abs().max() < rounding * theirs.abs().max()


def test_a_decoder_whose_samples_would_mix_is_refused(stack):
    """Its hidden states are running sums over a row, as those of recurrent layers are."""
    from rankrl.ppo.packing import PackedRows, keeps_samples_apart

    class Running(torch.nn.Module):
        def forward(self, input_ids, attention_mask, position_ids):
            return Output(last_hidden_state=input_ids[..., None].float().cumsum(1))

    class Output(dict):
        last_hidden_state = property(lambda self: self["last_hidden_state"])

    model = Running()
    assert not keeps_samples_apart(model, PackedRows(model), "cpu")


def test_without_a_response_token_there_is_nothing(stack, tmp_path):
    """A micro-batch whose every token is masked."""
    actor = actor_of(tiny_model("qwen3", tmp_path / "model"), lambda decoder: None)
    sequences_BT, action_BA, attention_BT = ragged(384)
    logprobs_BA, output = actor(sequences_BT, 0 * action_BA, attention_BT, return_output=True, return_entropy=True)
    assert logprobs_BA.eq(0).all() and output.entropy.eq(0).all()


TWO = ("scale.placement.policy_per_node=2", "scale.placement.critic_per_node=2", "scale.model.share_prefixes=false")
PACKED = ("scale.placement.micro_batch=1", "scale.placement.micro_batch_tokens=256")
ZERO3 = (f"scale.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}", "scale.model.gradient_checkpointing=true")
METHODS = ("gae", "group_mean")
TWO_CRITICS = ("critic.ensemble=2", "kl_anchor.place=loss", "updates_per_rollout=2")
"""A run that is only seen to work: shares of two critics, KL in the loss, two steps a rollout."""
OF_PARTS = ("grad_cosine", "kl_step", "policy_loss")
"""Of halves of a step; of the first micro-batches; a mean over micro-batches of any tokens."""


def two_steps(directory, *words, more=()):
    """Method of advantage -> (the lines of two steps, the adapter after them)."""
    import ray

    from rankrl.sweep.local import prepare_process

    prepare_process(5)
    from rankrl.ppo.loop import RunTrainer
    from rankrl.sweep.bench import Bench

    common = ("ranks=[4]", "seeds=[0]", *TWO, *words)
    runs = {m: runs_of("demo", "updates_per_rollout=1", f"advantage.method={m}", *common)[0] for m in METHODS}
    if more:
        runs["more"] = runs_of("demo", *more, *common)[0]
    found = {}
    with Bench(list(runs.values()), directory) as bench:
        for method, run in runs.items():
            trainer = RunTrainer(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
            trainer.attach()
            lines = [trainer.step(0), trainer.step(1)]
            weights = ray.get(bench.services.policy.async_run_method("weights", run.run_id))
            trainer.detach()
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
            found[method] = lines, weights[0]
    return found


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return two_steps(tmp_path_factory.mktemp("padded"), "scale.placement.micro_batch=16")


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", [2, 3])
def test_packed_training_equals_padded_training(padded, tmp_path, stage):
    """On two workers; under ZeRO-3 with recomputed activations."""
    packed = two_steps(tmp_path, *PACKED, *(ZERO3 if stage == 3 else ()), more=TWO_CRITICS)
    for line in packed["more"][0]:
        assert line["ratio_max"] > 1 and line["grad_norm"] > 0 and line["value_gap"] > 0
        assert line["sync_gap_nats"] < 1e-4 < line["kl_step"] or line["step"] == 1
    for method in METHODS:
        (ours, weights), (theirs, plain) = packed[method], padded[method]
        for line, other in zip(ours, theirs, strict=True):
            same = {k: v for k, v in line.items() if not k.endswith("_s") and k not in OF_PARTS}
            assert same == pytest.approx({k: other[k] for k in same}, rel=1e-3, abs=2e-5)
        moved = [torch.cat([w[k].flatten() for k in w if k.endswith("lora_B")]) for w in (weights, plain)]
        assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.999


def parts_under_zero3(rank: int, address: str, results) -> None:
    """A gradient with all logits and with five tokens' at a time, on one of two workers."""
    import torch.distributed as dist

    sys.path.insert(0, str(ROOT / "bench"))
    from gpu_models import attach, policy_worker

    from rankrl.ppo import cpu

    cpu.install()
    from rankrl.ppo import head
    from rankrl.recipe.architecture import EMBEDDED

    words = ("ranks=[4]", "seeds=[0]", "scale.model.share_prefixes=false", *ZERO3)
    run = runs_of("demo", *words, "scale.placement.policy_per_node=2", "scale.placement.micro_batch=16")[0]
    worker = policy_worker(run, EMBEDDED["embedded:nano"], (2, rank, *address))
    name, batch, found = attach(worker, run, 4), ragged(60), {}
    with worker.activate(name) as state:
        parameters = worker.parameters_of(state)
        for key, p in parameters.items():
            p.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(len(key)))
        worker.actor.train()
        for at_once in (2**26, 5 * 60):
            head.LOGITS_AT_ONCE = at_once
            logprobs_BA, output = worker.actor(*batch, return_output=True, return_entropy=True)
            (logprobs_BA.sum() * (rank + 1)).backward()
            grads = torch.cat([p.grad.flatten() for p in parameters.values()])
            found[at_once] = torch.cat([logprobs_BA.detach().flatten(), output.entropy.flatten(), grads])
            for p in parameters.values():
                p.grad = None
    whole, parts = found.values()
    results.put(((whole - parts).norm() / whole.norm()).item())
    dist.barrier()


@pytest.mark.slow
def test_logits_in_parts_under_zero3(stack):
    """The head's weights are gathered for all parts, and again in the backward pass."""
    import torch.multiprocessing as mp

    results = mp.get_context("spawn").SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    mp.spawn(parts_under_zero3, (address, results), nprocs=2)
    assert max(results.get() for _ in "ab") < 1e-5
