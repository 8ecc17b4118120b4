"""Measured starts of adapters: their rows, the value of each row, and diagnostics of both.

A start is measured once and used by all runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rankrl.recipe.whole_file import whole_file


@dataclass(frozen=True)
class Start:
    """The start of every module, for adapters of any rank up to R, the number of rows."""

    rows: dict[str, torch.Tensor]
    """Module -> [R, d_in], fp32 on the CPU, the most valuable first.

    Orthonormal, except for pissa and olora.
    """
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """Module -> [d_out, R], where B starts; for pissa, olora and olora_tail only."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """Module -> the value of each row [R], never increasing.

    For eva: its share of the activations' energy. For pg_subspace: its held-out signal u^T G v, or
    0 for a fallback row.
    """
    fisher: dict[str, list[float]] = field(default_factory=dict)
    """Module -> the Fisher's trace by leading direction of the input [R], never increasing.

    For pg_subspace with `fisher` only.
    """
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Module -> name -> value."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Facts about the whole measurement: numbers of samples, tokens and groups."""


def write_start(path: Path, start: Start) -> None:
    """Writes `path`.safetensors, then `path`.json; each file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{kind}/{m}": t.contiguous() for kind in ("rows", "columns") for m, t in getattr(start, kind).items()}
    plain = {"values": start.values, "fisher": start.fisher, "diagnostics": start.diagnostics, "summary": start.summary}
    for suffix, write in (
        (".safetensors", lambda part: save_file(tensors, part)),
        (".json", lambda part: part.write_text(json.dumps(plain, indent=1) + "\n")),
    ):
        with whole_file(path.with_name(path.name + suffix)) as part:
            write(part)  # two tasks may measure at once


def read_start(path: Path) -> Start:
    """The start stored at `path`. Raises whatever reading an absent or damaged file raises."""
    plain = json.loads(path.with_name(path.name + ".json").read_text())
    parts: dict[str, dict[str, torch.Tensor]] = {"rows": {}, "columns": {}}
    for key, tensor in load_file(path.with_name(path.name + ".safetensors")).items():
        kind, _, module = key.partition("/")
        parts[kind][module] = tensor
    return Start(**parts, **plain)
