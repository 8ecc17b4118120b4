"""Estimates of what a plan needs, compared with figures worked out by hand and with memory that is
counted operation by operation."""

import inspect
import weakref

import pytest
from conftest import rankrl, runs_of

from rankrl.recipe.architecture import config_path, read_config
from rankrl.recipe.estimate import estimates, likely_parallel_runs
from rankrl.recipe.load import load_scale
from rankrl.recipe.memory import activation_bytes, base_bytes, engine_bytes, kv_tokens, memory_bytes, offloaded_bytes

PADDED = "scale.placement.micro_batch_tokens=null"


def run_at(scale, *words):
    return runs_of("low_rank", f"scale={scale}", "ranks=[32]", "seeds=[0]", *words)[0]


def test_memory_of_8b():
    found = memory_bytes(run_at("qwen3-8b"), 32, 8)
    policy, value, engine = found["policy worker"], found["value worker"], found["engine"]
    weights, adapters = 8_190_735_360 * 2, 8 * 20 * 32 * 2_727_936
    assert policy["weights"] == value["weights"] == engine["weights"] == weights
    sharded = memory_bytes(run_at("qwen3-8b", "scale.deepspeed=ds_configs/zero3.json"), 32, 8)
    assert sharded["policy worker"]["weights"] == sharded["value worker"]["weights"] == weights / 2
    assert sharded["policy worker"]["gathered"] == 2 * 10**9  # stage3_max_live_parameters
    assert policy["adapters"] == value["adapters"] == adapters
    assert policy["activations"] == 9216 * (36 * 2 * 4096 + 150 * 4096)  # more than 2**26 logits take
    assert value["activations"] == 9216 * (36 * 2 * 4096 + 150 * 4096)
    assert engine["KV cache"] == pytest.approx(72e9 - weights - 8 * 2 * 32 * 2_727_936)
    assert kv_tokens(run_at("qwen3-8b").scale, engine["KV cache"]) == 367_715


def test_235b_keeps_copies_of_four_heads_on_eight_gpus():
    scale = run_at("qwen3-235b-a22b").scale
    room = engine_bytes(scale, 32, 1)["KV cache"]
    assert room == pytest.approx(72e9 - 235_093_634_560 * 2 / 8 - 2 * 32 * 3_176_448)
    assert kv_tokens(scale, room) == int(room / (2 * 94 * 128 * 2))  # one head of 128 a GPU
    assert base_bytes(scale, 16)["gathered"] == pytest.approx(235_093_634_560 * 2 / 94)  # a layer of experts at once


def test_offloading_moves_the_base_to_the_hosts():
    scale = run_at("qwen3-235b-a22b", "scale.deepspeed=ds_configs/zero3_offload.json").scale
    assert base_bytes(scale, 16)["weights"] == 0
    assert offloaded_bytes(scale) == 235_093_634_560  # two bytes a parameter over two nodes
    sharded = run_at("qwen3-235b-a22b").scale
    assert base_bytes(sharded, 16)["weights"] == 235_093_634_560 / 8
    assert offloaded_bytes(sharded) == 0


def test_lines_of_8b():
    lines = {line.what: line for line in estimates(runs_of("low_rank", "scale=qwen3-8b"), 8)}
    assert (lines["GPUs of a task"].value, lines["GPUs of a task"].mark) == ("8 on 1 node", "exact")
    assert lines["adapter of a run"].value == "10.9 MB to 349 MB saved, 5.46 MB to 175 MB a sync"
    assert lines["tokens of a run"].value == "295 M, at most 590 M"  # 500 x 128 x 9,216
    assert lines["KV cache, engine"].value == "367,715 tokens, 79 sequences"
    assert {line.mark for line in lines.values()} == {"exact", "estimate"}


def test_processes_that_share_gpus_add_up():
    place = ("colocated=true", "policy_per_node=4", "engines=4", "critic_per_node=0", "engine_memory=0.4")
    lines = {line.what: line for line in estimates([run_at("qwen3-8b", *(f"scale.placement.{w}" for w in place))], 1)}
    assert lines["GPUs of a task"].value == "4 on 1 node"
    assert "engine 32 GB" in lines["memory, all on one GPU"].formula


def test_nano_is_fitted_to_the_bench():
    """Measured with eight runs at once (bench/README.md): 814 MB for a policy worker, 826 MB for a
    value worker, 2913 MB for the engine."""
    found = memory_bytes(run_at("nano"), 32, 8)
    totals = {name: sum(parts.values()) for name, parts in found.items()}
    measured = {"policy worker": 814e6, "value worker": 826e6, "engine": 2913e6}
    assert totals == pytest.approx(measured, rel=0.05)
    assert {line.mark for line in estimates(runs_of("demo"), 6)} == {"exact", "estimate", "fitted"}


def test_large_adapters_are_packed_less():
    assert likely_parallel_runs(runs_of("baseline", "scale=qwen3-235b-a22b")) == 1
    assert (
        likely_parallel_runs(runs_of("baseline", "scale=qwen3-235b-a22b", "ranks=[1,4]")) == 6
    )  # 16 GB / (36 x 20 x 3,176,448)


def test_a_model_without_config_is_estimated_without_logits():
    run = run_at("qwen3-8b", "scale.model.path=someone/else")
    assert activation_bytes(run, logits=True) == 9216 * (36 * 2 * 4096 + 150 * 4096)


def test_plan_ends_with_the_estimates():
    shown = rankrl("plan", "recipes/low_rank.yaml", "scale=qwen3-8b").stdout
    assert "memory, policy worker  40.2 GB of 80 GB" in shown
    assert "H 4,096, L 36 " in shown.splitlines()[-1]


def counted_bytes(monkeypatch, name, layers, tokens, checkpointing, logits):
    """Peak bytes that a forward and backward pass of the first `layers` layers allocates.

    Counted operation by operation on fake tensors, which take no memory.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from transformers import AutoConfig, AutoModelForCausalLM

    from rankrl.ppo import head

    monkeypatch.setattr(head, "compute_entropy", inspect.unwrap(head.compute_entropy))  # a GPU compiles it

    class Peak(TorchDispatchMode):
        sizes, now, peak = {}, 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                    storage = tensor.untyped_storage()
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, storage._cdata)
            return out

        def free(self, key):
            self.now -= self.sizes.pop(key)

    scale = load_scale(name)
    config = {**read_config(config_path(scale.model)), "num_hidden_layers": layers, "max_window_layers": layers}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
        model.config.use_cache = False
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": True})
        head.token_head(model)
        model = get_peft_model(model, LoraConfig(r=32, target_modules=list(scale.model.modules)))
    with FakeTensorMode():
        counter = Peak()
        for module in model.modules():  # the weights become fake tensors, which are not counted
            for kind in (module._parameters, module._buffers):
                for key, p in kind.items():
                    if p is not None:
                        fake = torch.empty(p.shape, dtype=p.dtype)
                        counter.sizes[fake.untyped_storage()._cdata] = 0
                        kind[key] = torch.nn.Parameter(fake, p.requires_grad) if kind is module._parameters else fake
        ids = torch.zeros(1, tokens, dtype=torch.long)
        value = torch.ones(config["hidden_size"])
        with counter:
            hidden = model.base_model.model.model(ids).last_hidden_state
            if logits:
                asked = head.Question(ids, ids.bool(), 1.0, [])
                loss = model.base_model.model.lm_head.answer(hidden[0], ids[0], asked).mean()
            else:
                loss = (hidden.float() @ value).mean()
            loss.backward()
    return counter.peak


def gradients(name, layers):
    """Bytes of the gradients of an adapter of rank 32, which count as adapters."""
    return 4 * 32 * layers * sum(map(sum, load_scale(name).model.modules.values()))


@pytest.mark.slow
def test_a_long_sequence_of_8b_takes_less_than_10_gb(stack, monkeypatch):
    """With all logits at once it was 28 V bytes a token, 39 GB."""
    counted = counted_bytes(monkeypatch, "qwen3-8b", 36, 9216, True, True) - gradients("qwen3-8b", 36)
    assert counted == pytest.approx(6.4e9, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("name", "logits"), [("qwen3-8b", True), ("qwen3-30b-a3b", False)])
def test_activations_are_no_more_than_said(stack, monkeypatch, name, checkpointing, logits):
    layers, tokens = 3, 2048
    flag = f"scale.model.gradient_checkpointing={str(checkpointing).lower()}"
    lengths = ("scale.lengths.prompt_tokens=1024", "scale.lengths.response_tokens=1024")
    said = activation_bytes(run_at(name, flag, f"scale.model.layers={layers}", PADDED, *lengths), logits)
    counted = counted_bytes(monkeypatch, name, layers, tokens, checkpointing, logits) - gradients(name, layers)
    assert 0.65 * said < counted < 1.03 * said
