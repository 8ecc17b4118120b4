"""Tiny models of other families with random weights, stored in bfloat16, with nano's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rankrl.recipe.architecture import EMBEDDED

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's attention on CPUs takes
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # enough for adapters to be seen in log-probabilities
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"hidden_size": 128},  # its heads are as wide as the hidden size allows
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 16},
    "phi3": {"hidden_size": 128, "original_max_position_embeddings": 128},
}
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODULES = dict.fromkeys(FAMILIES, SPLIT) | {"phi3": ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]}
GPT2 = {
    "vocab_size": 384,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def tiny_model(family: str, to: Path, **changes: Any) -> Path:
    """Writes a model of `family` to the directory `to`, and returns `to`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = GPT2 if family == "gpt2" else SIZES | FAMILIES.get(family, {})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **changes}))
    model.to(torch.bfloat16).save_pretrained(to)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED["embedded:nano"] / name, to)
    assert json.loads((to / "config.json").read_text())["dtype"] == "bfloat16"
    return to
