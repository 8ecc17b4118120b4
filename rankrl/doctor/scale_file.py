"""`rankrl scale`: writes a scale file for any causal language model, from its config.json."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from rankrl.adapter.reach import adaptable, meta_model
from rankrl.adapter.served import check_served
from rankrl.data.loading import load_items, read_items
from rankrl.data.prompt import prompt_ids, tokenizer_here
from rankrl.data.ready import positions
from rankrl.doctor.assets import cached
from rankrl.doctor.fitting import check_gpus, fitted, gpus_here, runs_at_once
from rankrl.recipe.architecture import check_config, config_path, read_config
from rankrl.recipe.cost import DEVICES
from rankrl.recipe.estimate import size
from rankrl.recipe.load import load_scale
from rankrl.recipe.require import require
from rankrl.recipe.scale import Data, Lengths, Model, Placement, Reference, Scale

SMALL_PARAMS, SMALL_LR, LR = 10**9, (5e-4, 1e-3), (5e-5, 9e-5)
"""Below so many parameters the rates (policy, critic) are smollm2-135m's, else qwen3-8b's."""
TASK_ITEMS = {"nano": (6000, 252), "nano_hard": (6000, 252), "sums": (112, 64), "gsm_symbolic": (2000, 200)}
"""Task -> (training items, evaluation items)."""
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
ROUND, UNMEASURED_TOKENS, CPU_TOKENS, GPU_TOKENS = 16, 512, 256, 2048


def write_scale(model: str, to: Path, train: str, evaluation: str | None, gpus: int | None, memory_gb: float) -> Scale:
    """Writes a scale file and returns what it says.

    Raises ValueError, one line, if the file exists, the model is not here or cannot be adapted and
    served, or the data are not readable.
    """
    require(not to.exists(), "--to", str(to), "a new file", "it is there already")
    require(to.suffix in (".yaml", ".yml"), "--to", str(to), "a file that ends in .yaml")
    here = gpus_here() if gpus is None else []
    count = len(here) if gpus is None else gpus
    gpu_bytes = min(here, default=memory_gb * 1e9)
    check_gpus(count, gpu_bytes)
    path = str(Path(model).resolve()) if Path(model).is_dir() else model
    config = find_config(path)
    scale = fitted(draft(path, config, train, evaluation or train, to.stem, count > 0), count, gpu_bytes)
    to.parent.mkdir(parents=True, exist_ok=True)
    measured = tokenizer_here(scale.model) is not None
    text = as_yaml(scale, read_config(config), measured)
    if count and gpu_bytes < DEVICES[scale.placement.device].memory_bytes:  # which sweeps go by
        text += f"# sweep with parallel_runs={runs_at_once(scale, gpu_bytes)}: {size(gpu_bytes)} a GPU hold no more\n"
    to.write_text(text, "utf-8")
    return load_scale(str(to))


def find_config(path: str) -> Path:
    """The config.json of a directory, of the hub's cache, or one that ships with rankrl."""
    model = Model(path, 1, {"unknown": [1, 1]}, 1)
    found = (None if Path(path).is_dir() else cached(model, "config.json")) or config_path(model)
    fix = f"hf download {path} brings a hub's model here"
    require(found is not None, "MODEL", path, "a model's directory, or a hub id that is in the hub's cache", fix)
    assert found is not None
    return found


def draft(path: str, config_file: Path, train: str, evaluation: str, name: str, on_gpu: bool) -> Scale:
    """The scale of a model before it has a placement of its own."""
    config = read_config(config_file)
    check_served(path, config)
    model = described(path, config_file, on_gpu)
    check_config(model, config_file)
    tokenizer = tokenizer_here(model)
    data = data_of(train, evaluation, tokenizer)
    prompt, response = lengths(
        model, data, tokenizer, positions(config.get("text_config", config)), GPU_TOKENS if on_gpu else CPU_TOKENS
    )
    lr, critic_lr = SMALL_LR if model.base_params < SMALL_PARAMS else LR
    reference = Reference(lr=lr, critic_lr=critic_lr)
    return Scale(model, data, Lengths(prompt, response), reference, name, placement=Placement())


def described(path: str, config_file: Path, on_gpu: bool) -> Model:
    """The model as its own code builds it, on the meta device."""
    config, net = read_config(config_file), meta_model(config_file)
    text, params = net.config.get_text_config(), sum(p.numel() for p in net.parameters())
    experts = sum(p.numel() for p in net.parameters() if p.dim() == 3)
    of = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    idle = experts - experts * (getattr(text, "num_experts_per_tok", None) or 1) // of
    stored = config.get("dtype", config.get("torch_dtype"))
    return Model(
        path,
        text.num_hidden_layers,
        adaptable(net, path),
        params,
        dtype="float32" if stored == "bfloat16" and not on_gpu else "bfloat16",
        active_params=params - idle if experts else None,
        attention="eager" if getattr(text, "attn_logit_softcapping", None) else "sdpa",
        gradient_checkpointing=on_gpu and params >= SMALL_PARAMS,
    )


def data_of(train: str, evaluation: str, tokenizer: Any) -> Data:
    """The data section; items of files are counted."""
    chats = tokenizer is None or bool(tokenizer.chat_template)
    instruction = None if train in ("nano", "nano_hard", "sums") else INSTRUCTION
    counts = TASK_ITEMS.get(train) or (
        len(read_items(Path(train), "--train", chats)),
        len(read_items(Path(evaluation), "--evaluation", chats)),
    )
    return Data(train, evaluation, *counts, template="chat" if chats else None, instruction=instruction)


def lengths(model: Model, data: Data, tokenizer: Any, most: int | None, response: int) -> tuple[int, int]:
    """(prompt tokens, response tokens): the longest prompt of the data, and what is left."""
    prompt = UNMEASURED_TOKENS
    if tokenizer is not None:
        items = [item for part in load_items(data) for item in part]
        prompt = max(len(prompt_ids(tokenizer, data, item.prompt)) for item in items)
    rounded = ROUND * ceil(prompt / ROUND)
    prompt = rounded if most is None or rounded < most else prompt
    fix = "the longest prompt and a response; shorter data: --train nano, or --train FILE --evaluation FILE"
    fine = most is None or prompt < most
    require(fine, "--train", data.train, f"prompts of fewer than {most} tokens, the positions of {model.path}", fix)
    return prompt, response if most is None else min(response, most - prompt)


def as_yaml(scale: Scale, config: dict[str, Any], measured: bool) -> str:
    """The text of a scale file: what differs from the defaults, with comments.

    `measured` says whether the tokenizer was here.
    """
    known = "the longest prompt of the data" if measured else "not measured, the tokenizer is not here"
    model, place, per_rank = scale.model, scale.placement, sum(map(sum, scale.model.modules.values()))
    kind = (config.get("architectures") or [config["model_type"]])[0]
    where = "the CPU" if place.device == "cpu" else f"{place.gpus} GPU(s)"
    lines = [
        f"# {kind}, {model.base_params:,} parameters, on {where}. Written by `rankrl scale`; not run yet.",
        "# `rankrl doctor FILE` checks it, `rankrl plan recipes/low_rank.yaml scale=FILE` says what runs cost.",
        "model:",
        f"  path: {_text(model.path)}",
        f"  layers: {model.layers}",
        f"  modules: # name: [d_in, d_out]; {per_rank * model.layers:,} parameters per rank",
        *(f"    {name}: [{d_in}, {d_out}]" for name, (d_in, d_out) in model.modules.items()),
        f"  base_params: {model.base_params}",
        *([f"  active_params: {model.active_params} # of a token"] if model.active_params else []),
        f"  dtype: {model.dtype}{_why_dtype(model)}",
        *(["  attention: eager # sdpa leaves out the soft cap of its logits"] if model.attention == "eager" else []),
        *(["  gradient_checkpointing: true"] if model.gradient_checkpointing else []),
        "data: # your own: JSONL or Parquet files with the columns prompt and answer (docs/data.md)",
        *_section(asdict(scale.data), asdict(Data("", "", 1, 1))),
        "lengths:",
        f"  prompt_tokens: {scale.lengths.prompt_tokens} # {known}",
        f"  response_tokens: {scale.lengths.response_tokens} # the longer, the dearer; a longer response is cut",
        *([f"deepspeed: {scale.deepspeed}"] if place.device != "cpu" else []),
        "placement: # by the estimates of `rankrl plan`",
        *_section(asdict(place), asdict(Placement())),
        *(["slurm:", f"  gpus_per_node: {place.gpus}"] if place.device != "cpu" else []),
        "reference: # those of a shipped model of like size; `rankrl measure` and a short sweep say more",
        f"  lr: {scale.reference.lr:.1e}",
        f"  critic_lr: {scale.reference.critic_lr:.1e}",
    ]
    return "\n".join(lines) + "\n"


def _why_dtype(model: Model) -> str:
    return " # the weights are bfloat16 values; most CPUs compute faster in float32" if model.dtype == "float32" else ""


def _section(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """A line for each value that is not the default."""
    return [f"  {key}: {_text(value)}" for key, value in values.items() if value != defaults[key]]


def _text(value: Any) -> str:
    """A value as YAML, in quotes unless it is plainly a path, a name or the instruction."""
    plain = isinstance(value, str) and (re.fullmatch(r"[A-Za-z/~][\w./~-]*", value) or value == INSTRUCTION)
    return str(value) if plain else json.dumps(value)
