"""The config.json of a base, without its weights.

It is read from the base's directory, or from a copy that is shipped here for the hub ids of the
shipped scales.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

from rankrl.recipe.require import require
from rankrl.recipe.scale import Model, Scale

PACKAGE = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "rankrl"
SMOLLM2 = "embedded:smollm2-135m"
EMBEDDED = {
    "embedded:nano": PACKAGE / "data" / "nano_model",
    "embedded:nano-hard": PACKAGE / "data" / "nano_hard_model",
    SMOLLM2: CACHE / "smollm2-135m-1",
}
"""Directories of bases that need no hub. The last is created when a run first needs it
(rankrl/data/smollm2_base.py)."""
SHIPPED = PACKAGE / "scales" / "models"


def config_path(model: Model) -> Path | None:
    """Path of a model's config.json; None if there is none on this machine.

    It is in the model's local directory, or it is the shipped copy for a hub id or an embedded
    base.
    """
    directory = EMBEDDED.get(model.path, Path(model.path))
    if directory.is_dir():
        return directory / "config.json"
    shipped = SHIPPED / f"{model.path.removeprefix('embedded:')}.json"
    return shipped if shipped.is_file() else None


@lru_cache
def read_config(path: Path) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises ValueError, one line, if the file is missing or damaged, or names no architecture.
    """
    require(path.is_file(), "model.path", str(path), "a Hugging Face model directory with config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"model.path: {path} is no JSON ({error}); fetch it anew") from error
    named = isinstance(config, dict) and "model_type" in config
    require(named, "model.path", str(path), "a config.json that names a model_type")
    return config


def check_config(model: Model, path: Path) -> None:
    """Raises ValueError for a model that may not be used as the scale says.

    That is one that wants to run code of its own without permission, or one in float32 whose stored
    weights float32 would read differently.
    """
    for file in (path, path.parent / "tokenizer_config.json"):
        wants_code = file.is_file() and "auto_map" in json.loads(file.read_text())
        require(
            model.trust_remote_code or not wants_code,
            "model.trust_remote_code",
            False,
            "true, if you trust the code that comes with the model",
            f"{file.name} of {model.path} wants to run it",
        )
    config = read_config(path)
    stored = config.get("dtype", config.get("torch_dtype"))
    require(
        model.dtype != "float32" or stored == "bfloat16",
        "model.dtype",
        model.dtype,
        "bfloat16",
        f"the weights of {model.path} are stored as {stored}; float32 is for weights that bfloat16 holds exactly, because OpenRLHF "
        "reads weights as bfloat16 and vLLM as they are",
    )


@dataclass(frozen=True)
class Widths:
    """Sizes from config.json that estimates need besides the scale file."""

    hidden: int
    vocabulary: Optional[int]
    """Size of the vocabulary. None without a config.json: logits are not counted then."""
    kv_heads: Optional[int]
    """Number of key-value heads. None without a config.json: keys and values are then assumed to be
    split over all GPUs of an engine."""
    keys: Optional[int] = None
    """Size of a token's keys in a layer. None without a config.json."""


HIDDEN, HEADS = ("hidden_size", "n_embd", "d_model"), ("num_attention_heads", "n_head", "num_heads")
"""Names that families of models have for the same size."""


def _size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if config.get(name)), None)


def widths(scale: Scale) -> Widths:
    """The sizes in the config.json of the scale's base.

    Without one, the input of the first adapted module is taken as the hidden size. Raises
    ValueError as `read_config` does.
    """
    path = config_path(scale.model)
    if path is None:
        return Widths(next(iter(scale.model.modules.values()))[0], None, None)
    config = read_config(path)
    config = config.get("text_config", config)
    hidden, heads = _size(config, HIDDEN), _size(config, HEADS)
    require(hidden is not None, "model.path", str(path), f"a config.json with {', '.join(HIDDEN[:-1])} or {HIDDEN[-1]}")
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    return Widths(hidden or 0, config.get("vocab_size"), kv_heads, kv_heads * head if kv_heads and head else None)
