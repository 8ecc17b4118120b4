"""What was measured once for all runs: rows from which adapters start, the value of each, and how far they are to be trusted."""

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
    """Per module, for adapters of up to as many ranks as there are rows."""

    rows: dict[str, torch.Tensor]
    """[R, d_in], fp32 on the CPU, the most valuable first: orthonormal, but for pissa and olora."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """[d_out, R]: where B starts, of pissa and olora."""
    values: dict[str, list[float]] = field(default_factory=dict)
    """[R], never increasing. eva: share of the activations' energy; pg_subspace: held-out signal u^T G v, 0 for fallback."""
    fisher: dict[str, list[float]] = field(default_factory=dict)
    """[R], never increasing, of pg_subspace with `fisher`: the Fisher's trace by leading direction of the input."""
    diagnostics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Module -> name -> value."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Of the measurement as a whole: samples, tokens, groups."""


def write_start(path: Path, start: Start) -> None:
    """`path`.safetensors and, last, `path`.json; each is whole or absent."""
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
    """Raises whatever reading an absent or damaged file raises."""
    plain = json.loads(path.with_name(path.name + ".json").read_text())
    parts: dict[str, dict[str, torch.Tensor]] = {"rows": {}, "columns": {}}
    for key, tensor in load_file(path.with_name(path.name + ".safetensors")).items():
        kind, _, module = key.partition("/")
        parts[kind][module] = tensor
    return Start(**parts, **plain)
