"""Export of an adapter for serving: one rank and scale 1 for all modules.

PEFT and vLLM then compute the same. vLLM 0.29 reads one rank and one alpha per adapter and silently
drops PEFT's patterns (vllm/lora/peft_helper.py). So each module's scale is folded into its B,
factors are padded with zeros to the largest rank, and alpha = rank.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rankrl.adapter.peft_files import check_plain
from rankrl.recipe.require import require


def export(run: Path, to: Path, card: Callable[[int], str], name: str = "adapter") -> Path:
    """Writes a copy for serving of a run's adapter to `to`, and returns `to`.

    `name` is the adapter's directory in that of the run. The copy is complete or absent; `to`/peft
    holds the original. `card` returns the text of the model card, given the rank of the copy.
    Raises ValueError, one line, for a run without an adapter, a damaged adapter, or a directory
    that is not empty.
    """
    source = run / name
    require(
        (source / "adapter_config.json").is_file(),
        "RUN_DIR",
        str(run),
        "the directory of a finished run, or of a diverged one with an adapter"
        if name == "adapter"
        else "the directory of a finished run with average.method set",
        f"no {source}",
    )
    require(not to.exists() or not any(to.iterdir()), "--to", str(to), "a new or empty directory")
    config, tensors = _read(source)
    served_config, served = for_serving(config, tensors)
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part / "peft")
    (part / "adapter_config.json").write_text(json.dumps(served_config, indent=1) + "\n")
    save_file(served, part / "adapter_model.safetensors", metadata={"format": "pt"})
    ModelCard(card(served_config["r"])).save(part / "README.md")
    if to.exists():
        to.rmdir()
    part.rename(to)
    return to


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        config = json.loads((directory / "adapter_config.json").read_text())
        return config, load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"RUN_DIR: {directory} is damaged: {' '.join(str(error).split())}") from error


def for_serving(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """PEFT's configuration and factors A [r, d_in], B [d_out, r], all of the largest rank r.

    Scales are folded into B, and smaller factors are padded with zeros. Raises ValueError for
    adapters that need more than A, B and a scale (`check_plain`).
    """
    check_plain(config, "RUN_DIR")
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    rank = max(tensors[f"{module}.lora_A.weight"].shape[0] for module in modules)
    served = {}
    for module in modules:
        a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
        missing = rank - a.shape[0]
        served[f"{module}.lora_A.weight"] = np.pad(a, ((0, missing), (0, 0)))
        served[f"{module}.lora_B.weight"] = np.pad(
            b * np.float32(module_scale(config, module, a.shape[0])), ((0, 0), (0, missing))
        )
    targets = [module.removeprefix("base_model.model.") for module in modules]
    patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    return {**config, "r": rank, "lora_alpha": rank, **patterns, "target_modules": targets}, served


def module_scale(config: dict[str, Any], module: str, rank: int) -> float:
    """The scale alpha / rank that PEFT applies to a module, its alpha patterns included."""
    from peft.utils.other import get_pattern_key  # imports torch, for which no refusal has to wait

    patterns = config.get("alpha_pattern") or {}
    key = get_pattern_key(patterns.keys(), module.removeprefix("base_model.model."))
    return patterns.get(key, config["lora_alpha"]) / rank
