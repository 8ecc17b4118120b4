"""Reads and checks an adapter on disk in PEFT's format, before anything heavy is loaded: no torch.

In all functions, `key` names the setting in errors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankrl.recipe.rank_table import Shapes
from rankrl.recipe.require import require

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_KINDS = ("use_dora", "use_rslora", "modules_to_save", "lora_bias", "use_qalora", "alora_invocation_tokens")
PREFIX = "base_model.model."


def check_plain(config: dict[str, Any], key: str) -> None:
    """Raises ValueError for an adapter that needs more than A, B and alpha / rank."""
    foreign = [kind for kind in OTHER_KINDS if config.get(kind)]
    require(not foreign, key, foreign, "plain LoRA", "vLLM serves nothing else")


def read_config(directory: Path, key: str) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises ValueError, one line, if the file is damaged or the adapter is not a plain LoRA.
    """
    try:
        config = json.loads((directory / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {directory / CONFIG} is damaged: {' '.join(str(error).split())}") from error
    plain = isinstance(config, dict) and config.get("peft_type") == "LORA" and "lora_alpha" in config
    require(plain, key, str(directory), f"an adapter whose {CONFIG} says peft_type LORA and lora_alpha")
    check_plain(config, key)
    return config


def read_shapes(directory: Path, key: str) -> dict[str, tuple[int, int, int]]:
    """Module -> (d_in, rank, d_out), from the header of the weight file.

    Raises ValueError, one line, if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(directory / WEIGHTS, framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        modules = sorted({name.rpartition(".lora_")[0] for name in shapes})
        pairs = {m: (shapes[f"{m}.lora_A.weight"], shapes[f"{m}.lora_B.weight"]) for m in modules}
        return {m.removeprefix(PREFIX): (a[1], a[0], b[0]) for m, (a, b) in pairs.items()}
    except (OSError, KeyError, IndexError, SafetensorError) as error:
        raise ValueError(f"{key}: {directory / WEIGHTS} is damaged: {' '.join(str(error).split())}") from error


def check_fits(directory: Path, shapes: Shapes, base: str, key: str) -> int:
    """The adapter's largest rank.

    Raises ValueError, one line, if its modules do not fit those of `base`, given by `shapes`.
    """
    found = read_shapes(directory, key)
    require(len(found) > 0, key, str(directory), f"an adapter with LoRA factors in {WEIGHTS}")
    for module, (d_in, _, d_out) in found.items():
        fits = shapes.get(module) == (d_in, d_out)
        why = f"{module} of [{d_in}, {d_out}]" if module not in shapes else f"{module} is {[*shapes[module]]} there"
        require(fits, key, why, f"an adapter of modules of {base}", "it was trained on another base")
    return max(rank for _, rank, _ in found.values())
