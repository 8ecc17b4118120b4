"""What crosses the boundary of a rollout engine: requests and responses as arrays, and adapters.

An adapter on its way has its scaling folded into B, alpha = rank, and is flat in the engine's precision.

vLLM reads one rank and one alpha per adapter and drops PEFT's patterns, so the true scale of every module is folded into
its B and the adapter is published with scale 1. It is sent unpadded; the engine's buffers, of its serving rank, are zero
beyond the adapter's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Requests:
    """One sample per entry of `prompts` (token ids) and `seeds`."""

    prompts: list[list[int]]
    seeds: list[int]
    temperature: float
    response_tokens: int


@dataclass(frozen=True)
class Responses:
    """In request order: token ids and their log-probabilities, flat, with lengths; whether a response was cut."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    def split(self) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probabilities) of each response."""
        ends = np.cumsum(self.lengths)[:-1]
        return [
            (t.tolist(), p.tolist())
            for t, p in zip(np.split(self.token_ids, ends), np.split(self.logprobs, ends), strict=True)
        ]


@dataclass(frozen=True)
class Payload:
    """Tensors `names` of `shapes`, in this order and of one dtype, as bytes: what vLLM's process boundary passes unchanged."""

    names: list[str]
    shapes: list[tuple[int, int]]
    dtype: str
    data: bytes


def peft_names(factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Module -> (A, B) under the names that PEFT saves them by, on the CPU."""
    return {
        f"base_model.model.{module}.lora_{side}.weight": factor.detach().cpu().clone()
        for module, pair in factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }


def pack(factors: dict[str, tuple[torch.Tensor, torch.Tensor]], scales: dict[str, float], dtype: str) -> Payload:
    """Module -> (A [r, d_in], B [d_out, r]) with its scale, as a payload. Folding is done in fp32, before the cast."""
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.detach()
        tensors[f"base_model.model.{module}.lora_B.weight"] = scales[module] * b.detach()
    flat = torch.cat([t.flatten() for t in tensors.values()]).to(getattr(torch, dtype)).cpu()
    shapes = [(t.shape[0], t.shape[1]) for t in tensors.values()]
    return Payload(list(tensors), shapes, dtype, flat.view(torch.uint8).numpy().tobytes())


def unpack(names: list[str], shapes: list[tuple[int, int]], dtype: str, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a payload, by name."""
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    parts = flat.split([rows * columns for rows, columns in shapes])
    return {name: part.view(rows, columns) for name, part, (rows, columns) in zip(names, parts, shapes, strict=True)}
