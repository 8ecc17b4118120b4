"""The cost model, against figures worked out by hand."""

import pytest
from conftest import runs_of

from rankrl.recipe.cost import (
    concurrent_sequences,
    cost,
    gathers,
    generation_s,
    kv_bytes_per_token,
    memory,
    train_bytes,
)
from rankrl.recipe.estimate import estimates


def run_at_8b(*words):
    return runs_of("low_rank", "scale=qwen3-8b", "ranks=[32]", "seeds=[0]", *words)[0]


def test_key_value_cache_of_8b():
    scale = run_at_8b().scale
    assert kv_bytes_per_token(scale) == 2 * 36 * 1024 * 2  # keys and values, layers, 8 heads of 128, bf16
    # (80 GB * 0.9 - 16.38 GB of weights) / (147,456 bytes * 4,608 tokens)
    assert concurrent_sequences(scale) == 81


def test_decoding_of_8b_is_bound_by_bandwidth():
    scale = run_at_8b().scale
    # 32 sequences an engine, 4,096 steps, each reading 16.38 GB of weights and
    # 32 * 147,456 * 2,560 bytes of cache at 2 TB/s
    decode_s = 4096 * ((16.38e9 + 32 * 147_456 * 2560) / 2.0e12 + 0.003)
    prefill_s = 2 * 8.19e9 * 4 * 512 / 445e12
    assert generation_s(scale, 128, 16) == pytest.approx(decode_s + prefill_s + 32 * 2e-4, rel=0.01)


def test_update_of_8b():
    found = cost(run_at_8b(), 1)
    tokens = 128 * (1024 + 8192) / 2
    forward_s = 2 * 8.19e9 * tokens / 346e12
    assert found.update_s == pytest.approx(3 * forward_s / 2, rel=0.01)  # forward, recomputed, backward
    assert found.experience_s == pytest.approx(2.5 * forward_s / 2, rel=0.01)
    assert found.sync_s == pytest.approx(2_727_936 * 32 * 2 / 2e9, rel=0.01)


def test_packing_never_costs_more_and_rank_hardly_matters():
    one, tiny = run_at_8b(), run_at_8b("ranks=[1]")
    by_number = [cost(one, k).packed_s for k in (1, 2, 4, 8)]
    assert by_number == sorted(by_number, reverse=True)
    assert cost(tiny, 8).packed_s == pytest.approx(by_number[-1], rel=0.01)


def test_memory_of_8b():
    found = memory(run_at_8b().scale, train_bytes(run_at_8b()), 8)
    assert found.policy == found.critic == pytest.approx(16.38e9, rel=0.01)
    assert found.engine == pytest.approx(16.38e9, rel=0.01)
    assert found.run == 2_727_936 * 32 * 20
    sharded = memory(run_at_8b("scale.deepspeed=ds_configs/zero3.json").scale, train_bytes(run_at_8b()), 8)
    assert sharded.policy == sharded.critic == pytest.approx(16.38e9 / 2, rel=0.01)  # over 2 workers each
    shared = memory(run_at_8b("scale.placement.critic_per_node=0").scale, train_bytes(run_at_8b()), 8)
    assert (shared.critic, shared.run) == (0, 2_727_936 * (32 + 8) * 20)


def test_gathers_of_a_step():
    """32 samples a worker, one by one, each passed 2.5 times, trained by 3 passes; then packed."""
    before = ("scale.deepspeed=ds_configs/zero3.json", "scale.placement.policy_per_node=4")
    assert gathers(run_at_8b(*before, "scale.placement.micro_batch_tokens=null")) == 32 * 5.5
    # two optimizer steps of 16 x 4,608 tokens, 9,216 at a time: 8, and one for the fullest share
    assert gathers(run_at_8b(*before)) == 2 * 9 * 5.5
    assert gathers(run_at_8b(*before, "scale.placement.micro_batch_tokens=46080")) == 2 * 2 * 5.5
    on_one_base = gathers(run_at_8b(*before, "scale.placement.critic_per_node=0"))
    assert on_one_base == 2 * 9 * (5.5 + 4)  # and values: judged once, trained by 3 passes


def test_without_critics_their_gpus_train_the_policy():
    run = run_at_8b("advantage.method=rloo")
    assert (run.served.placement.policy_workers, run.served.placement.gpus) == (4, 8)
    assert run_at_8b().served.placement.policy_workers == 2
    mixed = runs_of("ablate_advantage", "scale=qwen3-8b", "ranks=[32]", "seeds=[0]")
    assert {run.served.placement.policy_workers for run in mixed} == {2}  # whichever of them are left
    with pytest.raises(ValueError, match=r"policy \(without critics\) workers = 6"):
        run_at_8b("advantage.method=rloo", "scale.placement.policy_without_critic=3")


def test_bytes_of_frozen_parameters_and_of_one_moment():
    a, b = (36 * 32 * sum(shape[side] for shape in run_at_8b().scale.model.modules.values()) for side in (0, 1))
    assert a + b == 32 * 2_727_936
    frozen = run_at_8b("trained=b")
    assert (frozen.trainable_params, frozen.frozen_params) == (b, a)
    assert train_bytes(frozen) == 8 * a + 20 * b  # A has a weight and a previous one; B also a gradient and moments
    spectral = ("optimizer.method=spectral", "rules.lr=0.1")
    assert train_bytes(run_at_8b(*spectral)) == 16 * (a + b)
    assert train_bytes(run_at_8b("trained=b", *spectral)) == 8 * a + 16 * b
    assert cost(frozen, 1).sync_s == pytest.approx(b * 2 / 2e9, rel=0.01)
    assert {line.what: line.value for line in estimates([frozen], 1)}[
        "adapter of a run"
    ] == "349 MB saved, 89.7 MB a sync"
