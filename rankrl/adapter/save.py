"""Writes an adapter to disk in PEFT's format, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

CARD = """---
{card_data}
---
# LoRA adapter of rank {rank}, trained by reinforcement learning

Run `{run_id}` of the rankrl sweep `{sweep}` on `{base}`: {steps} PPO steps, {params:,} trained parameters
({share:.3%} of the base).
{outcome}
"""
ENDED = """Held-out score {final:.4f} after training, {start:.4f} before (gain {gain:+.4f}), one seed: read it with the sweep's
other seeds."""
DIVERGED = """**The run diverged**: {error}. These are its weights after step {steps} of {planned_steps}, before the
divergence. They have no held-out score; the base has {start:.4f}."""


def save_adapter(
    to: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    base: str,
    facts: dict[str, Any],
    more: dict[str, str] | None = None,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors and README.md to `to`, all or nothing.

    `facts` fills the model card, which says of a run with an `error` that it diverged. `more`:
    further files, name -> text.
    """
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (part / "adapter_config.json").write_text(
        json.dumps({**plain, "base_model_name_or_path": base}, indent=1, default=str) + "\n"
    )
    save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
    hub = base if "/" in base and not base.startswith(("/", ".")) else None  # a model card can name hub models only
    data = ModelCardData(base_model=hub, library_name="peft", tags=["lora", "ppo", "rankrl"])
    outcome = (DIVERGED if "error" in facts else ENDED).format(**facts)
    ModelCard(CARD.format(card_data=data.to_yaml(), base=base, outcome=outcome, **facts)).save(part / "README.md")
    for name, text in (more or {}).items():
        (part / name).write_text(text)
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)
