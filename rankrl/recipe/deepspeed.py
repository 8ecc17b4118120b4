"""The DeepSpeed file of a scale, and what of it would have no effect."""

from __future__ import annotations

import json
from typing import Any

from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale
from rankrl.recipe.shipped import find_shipped, shipped

IDLE = {"optimizer", "scheduler", "gradient_clipping", "gradient_accumulation_steps", "train_batch_size",
                  "train_micro_batch_size_per_gpu", "bf16", "fp16"}  # fmt: skip
"""Top-level keys of a DeepSpeed file that are refused, because they have no effect."""
OFFLOAD_IDLE = {"offload_optimizer"}
"""Keys of the section zero_optimization that are refused, because they have no effect."""


def deepspeed_config(scale: Scale) -> dict[str, Any]:
    """The content of the scale's DeepSpeed file.

    Raises ValueError if it is missing, no JSON object with a ZeRO stage, or has keys without
    effect.
    """
    path = find_shipped(scale.deepspeed)
    if path is None:
        named = ", ".join(f"ds_configs/{file.name}" for file in sorted((shipped() / "ds_configs").glob("*.json")))
        raise ValueError(f"deepspeed: got {scale.deepspeed!r}, allowed: an existing JSON file, or the shipped {named}")
    try:
        config = json.loads(path.read_text())
        stage = config["zero_optimization"]["stage"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"deepspeed: {path} is no DeepSpeed configuration with zero_optimization.stage: {error}"
        ) from error
    require(stage in (0, 1, 2, 3), "deepspeed", stage, "ZeRO stage 0, 1, 2 or 3")
    idle = sorted(
        IDLE & set(config) | {f"zero_optimization.{k}" for k in OFFLOAD_IDLE & set(config["zero_optimization"])}
    )
    require(
        not idle,
        "deepspeed",
        idle,
        f"other keys in {path.name}: the base is frozen, and model.dtype is its precision",
    )
    offloads = "offload_param" in config["zero_optimization"]
    require(
        stage == 3 or not offloads,
        "deepspeed",
        "zero_optimization.offload_param",
        f"nothing: {path.name} has stage {stage}, and stage 3 alone shards and offloads a frozen base",
    )
    return config
