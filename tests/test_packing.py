"""The assumptions of packing, without Ray: shared prefixes and grouped adapters give the same
values as the plain computation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import runs_of

pytestmark = pytest.mark.usefixtures("stack")


def test_tree_of_three_sequences():
    from rankrl.ppo.prefixes import tree

    found = tree(((5, 6, 7), (5, 6, 8), (5, 9)))
    assert found.tokens_N.tolist() == [5, 6, 9, 7, 8]
    assert found.depth_N.tolist() == [0, 1, 1, 2, 2]
    assert found.node_BT.tolist() == [[0, 1, 3], [0, 1, 4], [0, 2, 0]]
    assert found.ancestors_NN.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def tiny_model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=20,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def test_shared_prefixes_change_neither_values_nor_gradients():
    from rankrl.ppo.prefixes import SharedPrefixes

    model = tiny_model()
    torch.manual_seed(1)
    tokens = torch.randint(1, 20, (12, 9))
    tokens[:6, :5] = tokens[0, :5]
    tokens[6:, :3] = tokens[6, :3]
    mask = (torch.arange(9) < torch.randint(5, 10, (12, 1))).long()
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    seen = []
    for shared in (False, True):
        if shared:
            SharedPrefixes(model.base_model)
        model.zero_grad()
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        logits[mask.bool()].square().mean().backward()
        seen.append((logits[mask.bool()].detach(), [p.grad.clone() for p in model.parameters()]))
    (plain, plain_grads), (folded, folded_grads) = seen
    assert torch.allclose(folded, plain, atol=1e-5)
    for ours, theirs in zip(folded_grads, plain_grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_adapters_equal_vllms_fallback(dtype):
    """Three adapters of 1, 5 and 40 tokens in one batch, two output slices."""
    from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink

    from rankrl.ppo.cpu_lora import add, groups

    torch.manual_seed(0)
    slots = torch.tensor([2] * 40 + [0] + [1] * 5)[torch.randperm(46)]
    x, y = torch.randn(46, 24).to(dtype), torch.randn(46, 14).to(dtype)
    a = tuple(torch.randn(3, 1, 4, 24).to(dtype) for _ in range(2))
    b = tuple(torch.randn(3, 1, width, 4).to(dtype) for width in (8, 6))
    expected, at = y.clone(), 0
    for a_slice, b_slice, width in zip(a, b, (8, 6), strict=True):
        buffer = torch.zeros(46, 4)
        bgmv_shrink(x, a_slice, buffer, slots, 0.5)
        bgmv_expand_slice(buffer, b_slice, expected, slots, at, width, add_inputs=True)
        at += width
    add(groups(slots), y, x, a, b, 0.5, (8, 6))
    assert torch.allclose(y, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)


def test_tokens_of_the_base_are_left_alone():
    from rankrl.ppo.cpu_lora import add, groups

    assert groups(torch.tensor([-1, -1])) == []
    y, x = torch.zeros(3, 2), torch.ones(3, 2)
    add(groups(torch.tensor([-1, 0, -1])), y, x, (torch.ones(1, 1, 1, 2),), (torch.ones(1, 1, 2, 1),), 1.0, (2,))
    assert y.tolist() == [[0, 0], [2, 2], [0, 0]]


def test_rows_that_follow_each_other_are_not_copied_and_give_the_same():
    from rankrl.ppo.cpu_lora import add, groups

    torch.manual_seed(0)
    slots, order = torch.tensor([0] * 20 + [-1] * 3 + [1] * 30), torch.randperm(53)
    x, a, b = torch.randn(53, 64), torch.randn(2, 1, 8, 64), torch.randn(2, 1, 96, 8)
    assert groups(slots) == [(0, slice(0, 20)), (1, slice(23, 53))]
    assert [type(rows) for _, rows in groups(slots[order])] == [torch.Tensor] * 2
    together, apart = torch.zeros(53, 96), torch.zeros(53, 96)
    add(groups(slots), together, x, (a,), (b,), 1.0, (96,))
    add(groups(slots[order]), apart, x[order], (a,), (b,), 1.0, (96,))
    assert torch.equal(together[order], apart) and together[20:23].eq(0).all()


@pytest.mark.parametrize("others", [0, 3, 900])
def test_a_row_does_not_depend_on_its_batch(others):
    """Equal bit for bit, so that a run samples the same tokens whether it is packed or alone."""
    from rankrl.ppo.cpu_lora import add, groups

    torch.manual_seed(0)
    x, a, b = torch.randn(1000, 256), torch.randn(2, 1, 8, 256), torch.randn(2, 1, 256, 8)
    alone, packed = torch.zeros(5, 256), torch.zeros(5 + others, 256)
    add(groups(torch.zeros(5, dtype=torch.int)), alone, x[:5], (a,), (b,), 1.0, (256,))
    slots = torch.tensor([0] * 5 + [1] * others)
    add(groups(slots), packed, x[: 5 + others], (a,), (b,), 1.0, (256,))
    assert torch.equal(alone, packed[:5])


class Attempts:
    """A bench whose attempts have the given outcomes."""

    def __init__(self, outcomes):
        self.outcomes, self.seen = outcomes, []

    def attempt(self, run, attempts, alone):
        self.seen.append((run.run_id, alone))
        outcome = self.outcomes[run.run_id, alone]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.mark.slow
def test_a_suspect_is_tried_alone_and_a_refused_run_does_not_end_the_others(capsys):
    from rankrl.report.result import Result
    from rankrl.sweep.bench import Suspect
    from rankrl.sweep.packing import train_all

    runs = runs_of("demo", "ranks=[1]", "seeds=[0,1,2,3]")
    results = [Result.of(run, "finished", 0.2, 0.3, 0.3, 1000, 30, 1.0, 7936) for run in runs]
    names = [run.run_id for run in runs]
    bench = Attempts(
        {
            (names[0], False): Suspect(names[0]),
            (names[0], True): dataclasses.replace(results[0], status="failed", error="died"),
            (names[1], False): ValueError("in use"),
            (names[2], False): results[2],
            (names[3], False): None,
        }
    )
    statuses = []
    with pytest.raises(ValueError, match="in use"):
        for status in train_all(runs, bench, 2):
            statuses.append(status)
    assert sorted(statuses) == ["failed", "finished", "stopped"]
    assert bench.seen[-1] == (names[0], True)
    assert f"{names[0]} failed: died" in capsys.readouterr().out


def rollout_batch(lengths: list[int], answers: list[int], first: int):
    """Samples with these numbers of tokens. The last `answers` tokens are the response."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    T = max(lengths)
    attention_mask = torch.tensor([[int(t < n) for t in range(T)] for n in lengths])
    action_mask = torch.tensor(
        [[int(n - a - 1 <= t < n - 1) for t in range(T - 1)] for n, a in zip(lengths, answers, strict=True)]
    )
    rewards = torch.arange(first, first + len(lengths)).float()
    return Experience(
        sequences=torch.arange(first, first + len(lengths))[:, None] * attention_mask,
        attention_mask=attention_mask,
        action_mask=action_mask,
        advantages=rewards[:, None] * action_mask,
        rewards=rewards,
        index=list(range(len(lengths))),
        info={"reward": rewards, "response_clip_ratio": rewards > first},
    )


def test_replay_buffer_hands_out_the_micro_batches_as_they_are():
    """As upstream's update asks for them: each once, in an order that the random state sets."""
    from torch.utils.data import DataLoader

    from rankrl.ppo.replay import ReplayBuffer

    buffer, made = ReplayBuffer(), [rollout_batch([4, 6, 5], [1, 3, 2], first=10 * i) for i in range(1, 5)]
    for batch in made:
        buffer.append(batch)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loader = DataLoader(
            buffer, batch_size=buffer.sample_batch_size, shuffle=True, drop_last=True, collate_fn=buffer.collate_fn
        )
        seen = list(loader)
        assert sorted(map(id, seen)) == sorted(map(id, made))
        orders.append([int(batch.sequences[0, 0]) for batch in seen])
    assert orders[0] == orders[1] != orders[2]
    buffer.clear()
    assert len(buffer) == 0


def test_micro_batches_are_dealt_by_lot_and_hold_every_sample_once(stack):
    from types import SimpleNamespace

    from rankrl.ppo.experience import ExperienceMaker

    def dealt(samples, seed):
        maker = SimpleNamespace(
            args=SimpleNamespace(rollout=SimpleNamespace(micro_batch_size=4)),
            run=SimpleNamespace(
                critics=1,
                recipe=SimpleNamespace(samples_per_prompt=8),
                served=SimpleNamespace(placement=SimpleNamespace(micro_batch_tokens=None)),
            ),
            _parts=lambda *parts: ExperienceMaker._parts(maker, *parts),
            _micro_batch=lambda _, part: part,
        )
        return ExperienceMaker.split_rollout_samples(maker, range(samples), seed)

    parts = dealt(24, 7)
    assert [len(part) for part in parts] == [4] * 6 and sorted(i for part in parts for i in part) == [*range(24)]
    assert parts == dealt(24, 7) != dealt(24, 8)
    firsts = [i for seed in range(200) for i in dealt(24, seed)[0]]  # no part of the rollout is favoured
    assert sum(firsts) / len(firsts) == pytest.approx(11.5, abs=0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_travel_as_arrays(dtype):
    from rankrl.ppo.transport import to_array, to_tensor

    for tensor in (
        torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype),
        torch.tensor(1).to(dtype),
        torch.empty(0, 3).to(dtype),
    ):
        sent = to_array(tensor.T if tensor.dim() == 2 else tensor)
        sent[0].flags.writeable = False
        arrived = to_tensor(sent)
        assert arrived.dtype == dtype and torch.equal(arrived, tensor.T if tensor.dim() == 2 else tensor)
        arrived.zero_()  # the receiver may write to it


def test_runs_of_a_serving_rank_have_services_of_their_own(stack, tmp_path, monkeypatch):
    """Ranks 4 and 8 take slots of rank 8; or all share the largest."""
    from contextlib import nullcontext

    from rankrl.recipe.scale import Execution
    from rankrl.sweep import local

    runs = runs_of("demo", "ranks=[32,4,8,1]", "seeds=[0]")
    opened: list[list[int]] = []
    trained: list[list[int]] = []
    monkeypatch.setattr(
        local, "bench_for", lambda of, *_: nullcontext(opened.append([run.rank for run in of]) or len(opened))
    )
    monkeypatch.setattr(local, "_train", lambda todo, bench: trained.append((bench, *(r.rank for r in todo))) or True)
    for services in ("by_rank", "shared"):
        local._sweep(runs, iter([runs]), tmp_path, Execution(services=services))
    assert opened == [[1], [4, 8], [32], [32, 4, 8, 1]]
    assert trained == [(1, 1), (2, 4, 8), (3, 32), (4, 32, 4, 8, 1)]
