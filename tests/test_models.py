"""`rankrl scale` and the checks before a run, on tiny models of other families."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import cache

import pytest
from conftest import rankrl
from tiny_models import FAMILIES, MODULES, tiny_model

from rankrl.adapter.served import check_served
from rankrl.cli import main
from rankrl.data.prompt import short_enough
from rankrl.recipe.architecture import SHIPPED, read_config, widths
from rankrl.recipe.cost import kv_bytes_per_token
from rankrl.recipe.load import load_scale

CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """family(name) -> directory of the model, made once."""
    return cache(lambda name: tiny_model(name, tmp_path_factory.mktemp(name)))


def told(capsys, *words):
    """(exit code, output, error) of a command."""
    capsys.readouterr()  # progress bars of the model that was made
    code = main([*map(str, words)])
    return code, *capsys.readouterr()


def written(capsys, model, to, *words):
    """The scale that `rankrl scale` writes."""
    code, _, error = told(capsys, "scale", model, "--to", to, *words)
    assert code == 0, error
    return load_scale(str(to))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_scale_works_at_once(capsys, tmp_path, family, name):
    to = tmp_path / "my.yaml"
    scale = written(capsys, family(name), to, "--train", "nano", "--gpus", "0")
    config = json.loads((family(name) / "config.json").read_text())
    hidden, heads, kv = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head = config.get("head_dim") or hidden // heads
    assert [*sorted(scale.model.modules)] == sorted(MODULES[name])
    fused = {"qkv_proj": [hidden, (heads + 2 * kv) * head], "gate_up_proj": [hidden, 256]}
    split = {"q_proj": [hidden, heads * head], "k_proj": [hidden, kv * head], "up_proj": [hidden, 128]}
    expected = {"o_proj": [heads * head, hidden], "down_proj": [128, hidden], **(fused if name == "phi3" else split)}
    assert scale.model.modules.items() >= expected.items()
    assert (scale.model.dtype, scale.placement.device, scale.data.template) == ("float32", "cpu", None)
    assert scale.model.attention == ("eager" if name == "gemma2" else "sdpa")
    assert scale.lengths.prompt_tokens + scale.lengths.response_tokens == 128
    assert kv_bytes_per_token(scale) == 2 * 2 * kv * head * 4
    code, shown, _ = told(capsys, "plan", "recipes/low_rank.yaml", f"scale={to}")
    assert code == 0 and "30 runs of 500 steps at scale my" in shown
    shown = told(capsys, "doctor", to, "--runs", tmp_path / "runs")[1]
    checks = {line.split()[1]: line for line in shown.splitlines() if line[:4] in ("ok  ", "warn", "FAIL")}
    assert {checks[what][:4] for what in ("attention", "weights", "model", "data", "DeepSpeed")} == {"ok  "}, shown


def test_names_that_plans_use_are_the_models(family, capsys, tmp_path):
    """An adapter's names are compared with a plan's, where the model is not here."""
    from rankrl.adapter.reach import reach
    from rankrl.recipe.allocation import module_shapes

    for name in FAMILIES:
        scale = written(capsys, family(name), tmp_path / f"{name}.yaml", "--train", "nano")
        assert reach(scale.model, family(name) / "config.json").adapted == module_shapes(scale)


def nested(model):
    """Gemma 3's config.json, which has the decoder's under text_config."""
    return {**model, "model_type": "gemma3", "text_config": model, "vision_config": {}}


REFUSED = {
    "gpt2": (lambda c: c, "allowed: a model that vLLM serves adapters of (GPT2LMHeadModel lacks SupportsLoRA there)"),
    "Conv1D": (
        lambda c: c | {"architectures": ["LlamaForCausalLM"]},
        "have linear modules (nn.Linear) (its modules are",
    ),
    "images": (nested, "allowed: a model of text alone (gemma3 also takes images or sound"),
    "unknown": (lambda c: {"architectures": ["X"], "model_type": "x"}, "transformers builds no causal language model"),
    "no architecture": (lambda c: c | {"architectures": None}, "a config.json that names its architectures"),
    "own code": (lambda c: llama() | {"auto_map": {}}, "model.trust_remote_code: got False"),
}


def llama():
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 64}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_adapted_is_refused_in_one_line(capsys, tmp_path, family, case):
    change, says = REFUSED[case]
    config = json.loads((family("gpt2") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(change(config)))
    code, _, error = told(capsys, "scale", tmp_path, "--to", tmp_path / "my.yaml")
    assert code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "my.yaml").exists()


def test_doctor_and_eval_refuse_what_vllm_serves_no_adapters_of(capsys, tmp_path, family):
    words = ["nano", f"scale.model.path={family('gpt2')}", "scale.model.modules={c_attn: [64, 192]}"]
    shown = told(capsys, "doctor", *words, "--runs", tmp_path)[1]
    assert "FAIL  model" in shown and "GPT2LMHeadModel lacks SupportsLoRA" in shown
    code, _, error = told(capsys, "eval", "base", *words, "--runs", tmp_path)
    assert code == 2 and "GPT2LMHeadModel lacks SupportsLoRA" in error and "ray" not in error


UNLIKE = {
    "soft cap": ("gemma2", ["attention=sdpa"], "model.attention: got 'sdpa', allowed: eager or flash_attention_2"),
    "window": ("mistral", ["share_prefixes=true"], "looks back 16 tokens, prompt and response have 128"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_attention_that_is_not_the_models_is_refused(capsys, tmp_path, case):
    name, words, says = UNLIKE[case]
    model = tiny_model(name, tmp_path / "model", sliding_window=16)
    written(capsys, model, tmp_path / "my.yaml", "--train", "nano", "--gpus", "0")
    shown = told(capsys, "doctor", tmp_path / "my.yaml", *(f"scale.model.{word}" for word in words))[1]
    assert "FAIL  data" in shown and says in shown


def test_sdpa_does_leave_out_the_soft_cap(tmp_path):
    """The reason for `eager`; when this fails, transformers has mended it."""
    import torch
    from transformers import AutoModelForCausalLM

    tiny_model("gemma2", tmp_path, attn_logit_softcapping=0.5)
    kinds = [AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=kind) for kind in ("eager", "sdpa")]
    eager, sdpa = (model(torch.arange(5, 15)[None]).logits for model in kinds)
    assert (eager - sdpa).abs().max() > 0.1


def test_a_module_that_an_engine_lacks_is_not_left_out_in_silence():
    from rankrl.ppo.serving import check_known

    layer, packed = "model.layers.0.mlp", {"model.layers.0.mlp.gate_up_proj": ["model.layers.0.mlp.up_proj"]}
    check_known([f"{layer}.up_proj", f"{layer}.down_proj"], [f"{layer}.down_proj"], packed)
    with pytest.raises(ValueError, match=r"got 'fc1', .*it has no model.layers.0.mlp.fc1 \(1 in all\)"):
        check_known([f"{layer}.up_proj", f"{layer}.fc1"], [f"{layer}.down_proj"], packed)


def test_sizes_under_gpt2s_names_are_read(family):
    model = dataclasses.replace(load_scale("nano").model, path=str(family("gpt2")))
    found = widths(dataclasses.replace(load_scale("nano"), model=model))
    assert (found.hidden, found.vocabulary, found.kv_heads, found.keys) == (64, 384, 2, 64)


@pytest.mark.slow
def test_shipped_models_are_served_and_vllm_is_not_imported():
    for path in SHIPPED.rglob("*.json"):
        check_served(path.stem, read_config(path))  # an error if vLLM takes no LoRA for it
    code = "import rankrl.adapter.reach, sys; sys.exit('vllm' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WRONG_WORDS = {
    "exists": (["there.yaml"], "--to: got"),
    "no YAML": (["my.txt"], "a file that ends in .yaml"),
    "no such data": (["my.yaml", "--train", "no.jsonl"], "--train: got 'no.jsonl'"),
    "too long": (["my.yaml"], "--train: got 'gsm_symbolic', allowed: prompts of fewer than 128 tokens"),
    "GPUs": (["my.yaml", "--gpus", "9"], "--gpus: got 9, allowed: 0 to 8"),
    "small": (["my.yaml", "--train", "nano", "--gpus", "1", "--gpu-memory", "1"], "allowed: more GPUs, or larger ones"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_refused_in_one_line(capsys, tmp_path, family, case):
    (tmp_path / "there.yaml").write_text("")
    (to, *words), says = WRONG_WORDS[case]
    code, _, error = told(capsys, "scale", family("llama"), "--to", tmp_path / to, *words)
    assert code == 2 and says in error and error.count("\n") == 1
    assert (tmp_path / "there.yaml").read_text() == "" and not (tmp_path / "my.yaml").exists()


def test_a_model_that_is_not_here_is_a_clear_line(capsys, tmp_path):
    code, _, error = told(capsys, "scale", "no/model", "--to", tmp_path / "my.yaml")
    assert code == 2 and "MODEL: got 'no/model'" in error and "(hf download no/model" in error


def test_files_are_counted_and_measured(capsys, tmp_path):
    model = tiny_model("qwen3", tmp_path / "a model #1")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    for name, rows in (("train", 3), ("eval", 2)):
        lines = [json.dumps({"prompt": f"{name} {'9' * i}", "answer": "1"}) for i in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--train", tmp_path / "train.jsonl", "--evaluation", tmp_path / "eval.jsonl"]
    scale = written(capsys, model, tmp_path / "my.yaml", *files)
    assert (scale.model.path, scale.data.train) == (str(model), str(tmp_path / "train.jsonl"))
    assert (scale.data.train_items, scale.data.eval_items, scale.data.template) == (3, 2, "chat")
    assert scale.data.instruction == "Please reason step by step, and put your final answer within \\boxed{}."
    assert scale.lengths.prompt_tokens == 64 and scale.lengths.response_tokens == 64
    shorter = dataclasses.replace(scale, lengths=dataclasses.replace(scale.lengths, prompt_tokens=48))
    assert short_enough(scale)("train 99") and not short_enough(shorter)("train 99")


PLACES = {  # GPUs, GB of each -> (policy workers, engines, GPUs per engine, colocated, DeepSpeed)
    (1, 80): (1, 1, 1, True, "zero2"),
    (2, 80): (1, 1, 1, False, "zero2"),
    (8, 80): (4, 4, 1, False, "zero2"),
    (4, 24): (2, 1, 2, False, "zero3"),
}


@pytest.mark.parametrize("gpus", PLACES)
def test_8b_is_put_on_the_gpus_that_are_named(capsys, tmp_path, gpus):
    count, memory = gpus
    scale = written(
        capsys, "Qwen/Qwen3-8B", tmp_path / "my.yaml", "--gpus", count, "--gpu-memory", memory, "--train", "sums"
    )
    shipped, place = load_scale("qwen3-8b").model, scale.placement
    same = {key: getattr(shipped, key) for key in ("path", "layers", "modules", "base_params", "dtype")}
    assert {key: getattr(scale.model, key) for key in same} == same
    found = (place.policy_per_node, place.engines, place.tensor_parallel, place.colocated)
    assert (*found, scale.deepspeed) == (*PLACES[gpus][:4], f"ds_configs/{PLACES[gpus][4]}.json")
    assert place.gpus == scale.slurm.gpus_per_node == count
    assert scale.data.template == "chat" and "the tokenizer is not here" in (tmp_path / "my.yaml").read_text()


@pytest.mark.pipeline
def test_fused_projections_learn_and_the_engine_acts_with_them(family, capsys, tmp_path):
    """Phi-3: the engine's fused layers are the model's own, unlike those of other decoders."""
    written(capsys, family("phi3"), tmp_path / "my.yaml", "--train", "nano", "--gpus", "0")
    small = ["lengths.response_tokens=16", "data.eval_items=16", "sampling.eval_samples=1", "sampling.base_samples=1"]
    words = ["ranks=[4]", "batch_sizes=[8]", "seeds=[0]", "steps=2", "name=phi3", "scale.reference.lr=1e-2"]
    words += [f"scale={tmp_path / 'my.yaml'}", *(f"scale.{word}" for word in small), "--runs", str(tmp_path)]
    done = rankrl("sweep", "recipes/low_rank.yaml", *words, timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "phi3" / "r4-b8-s0"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(step["sync_gap_nats"] for step in steps) < 1e-5 < steps[-1]["kl_ref"]  # the adapter has moved
    targets = json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert {target.rpartition(".")[2] for target in targets} == {*MODULES["phi3"]}
