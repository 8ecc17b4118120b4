"""Which modules adapters reach in the models of the shipped scales, built without weights, and how
DeepSpeed reads the shipped configuration files."""

import dataclasses
import json
from functools import cache

import pytest
from conftest import ROOT, runs_of

from rankrl.recipe.architecture import SHIPPED, check_config, config_path, read_config
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.load import load_scale

# Parameters per rank: adapted modules; all linear modules; adapted ones and experts by
# target_parameters; PEFT's all-linear.
PER_RANK = {
    "nano": (7_936, 7_936, 7_936, 7_936),
    "nano-hard": (7_936, 7_936, 7_936, 7_936),
    "smollm2-135m": (305_280, 305_280, 305_280, 305_280),
    "qwen3-8b": (2_727_936, 2_727_936, 2_727_936, 2_727_936),
    "qwen3-30b-a3b": (835_584, 835_584, 40_157_184, 62_281_728),
    "qwen3-235b-a22b": (3_176_448, 3_176_448, 157_186_048, 243_828_480),
}


@cache
def count(name):
    from rankrl.adapter.reach import reach

    model = load_scale(name).model
    return reach(model, config_path(model))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "235b" in name else name for name in PER_RANK]
)
def test_adapters_reach_what_the_scale_says(name):
    found = count(name)  # raises unless parameters, layers and shapes agree
    with_experts = found.adapted_per_rank + found.experts_per_rank
    assert (found.adapted_per_rank, found.linear_per_rank, with_experts, found.all_linear_per_rank) == PER_RANK[name]


def test_experts_of_30b_are_no_linear_modules():
    from rankrl.adapter.reach import describe

    found = count("qwen3-30b-a3b")
    assert len(found.experts) == 2 * 48
    assert found.experts["model.layers.47.mlp.experts.gate_up_proj"] == (128, 2 * 768, 2048)
    assert found.experts["model.layers.0.mlp.experts.down_proj"] == (128, 2048, 768)
    assert found.expert_params == 48 * 128 * 3 * 2048 * 768 == 28_991_029_248
    assert "95.0% of the base" in describe(found)


WRONG_MODEL = {
    "layers": ({"layers": 35}, "model.layers: got 35, allowed: 36"),
    "parameters": ({"base_params": 8_000_000_000}, "allowed: 8190735360"),
    "shape": ({"modules": {"q_proj": [4096, 2048]}}, "model.modules.q_proj: got [4096, 2048]"),
    "no such module": ({"modules": {"c_attn": [4096, 4096]}}, "model.modules: got 'c_attn'"),
}


@pytest.mark.parametrize("case", WRONG_MODEL)
def test_a_scale_that_differs_from_its_model_is_refused(case):
    from rankrl.adapter.reach import reach

    change, says = WRONG_MODEL[case]
    model = dataclasses.replace(load_scale("qwen3-8b").model, **change)
    with pytest.raises(ValueError) as error:
        reach(model, config_path(model))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_experts_cannot_be_adapted_as_modules():
    from rankrl.adapter.reach import reach

    model = load_scale("qwen3-30b-a3b").model
    with pytest.raises(ValueError, match=r"'down_proj', allowed: k_proj, .*fused experts are none"):
        reach(dataclasses.replace(model, modules={"down_proj": [768, 2048]}), config_path(model))


def test_configs_of_models_are_read_and_checked(tmp_path):
    model = dataclasses.replace(load_scale("nano").model, path=str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match="is no JSON"):
        read_config(config_path(model))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {}, "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match=r"model\.trust_remote_code: got False"):
        check_config(model, config_path(model))
    assert config_path(dataclasses.replace(model, path="someone/unknown")) is None
    assert all(read_config(path)["torch_dtype"] == "bfloat16" for path in SHIPPED.rglob("*.json"))


def strategy_of(deepspeed, dtype):
    from rankrl.ppo.arguments import arguments
    from rankrl.ppo.strategy import AdapterStrategy

    run = runs_of("demo", f"scale.deepspeed={deepspeed}", f"scale.model.dtype={dtype}")[0]
    return AdapterStrategy(arguments(run, "m"), deepspeed_config(run.scale), run.scale)


def base_config(deepspeed, dtype="bfloat16"):
    return strategy_of(deepspeed, dtype).get_ds_eval_config()


@pytest.mark.parametrize(
    ("name", "stage", "offload"), [("zero2", 0, "none"), ("zero3", 3, "none"), ("zero3_offload", 3, "cpu")]
)
def test_deepspeed_accepts_the_shipped_files(stack, name, stage, offload):
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(base_config(f"ds_configs/{name}.json"))
    zero = read.zero_config
    assert (zero.stage, zero.offload_param.device, zero.offload_optimizer) == (stage, offload, None)
    assert read.bfloat16_config.enabled and not read.float16_config.enabled
    if stage == 3:
        assert (zero.param_persistence_threshold, zero.max_live_parameters) == (100_000, 10**9)


@pytest.mark.parametrize(("dtype", "enabled"), [("float16", (False, True)), ("float32", (False, False))])
def test_deepspeed_takes_the_precision_of_the_base(stack, dtype, enabled):
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(base_config("ds_configs/zero3.json", dtype))
    assert (read.bfloat16_config.enabled, read.float16_config.enabled) == enabled


def test_a_device_without_float16_is_told(stack, monkeypatch):
    """Some CPUs have it, others do not."""
    import torch
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(ValueError, match=r"scale.model.dtype: got 'float16', allowed: bfloat16 or float32"):
        strategy_of("ds_configs/zero2.json", "float16").prepare(torch.nn.Linear(2, 2))


def test_deepspeed_refuses_unknown_keys_of_zero(stack, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 3, "stage3_prefetch": 1}}')
    with pytest.raises(ValueError, match="stage3_prefetch"):
        DeepSpeedConfig(base_config(file))


def test_offloading_without_sharding_is_refused(tmp_path):
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}')
    scale = dataclasses.replace(load_scale("nano"), deepspeed=str(file))
    with pytest.raises(ValueError, match="stage 3 alone shards and offloads"):
        deepspeed_config(scale)


def test_files_of_models_are_in_the_package():
    names = [*(f"Qwen/Qwen3-{size}" for size in ("8B", "30B-A3B", "235B-A22B")), "smollm2-135m"]
    assert {path.relative_to(ROOT).as_posix() for path in SHIPPED.rglob("*.json")} == {
        f"rankrl/scales/models/{name}.json" for name in names
    }
