"""What is exchanged with a rollout engine: requests and responses as arrays, and adapters as bytes.

vLLM reads one rank and one alpha per adapter and ignores PEFT's patterns. So every module's scale
is folded into its B, and the adapter is sent with scale 1 (alpha = rank), flat and in the engine's
precision. It is sent unpadded: the engine's buffers, which have the serving rank, are zero beyond
the adapter's rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch


@dataclass(frozen=True)
class Requests:
    """Requests for one sample per entry of `prompts` (token ids) and `seeds`."""

    prompts: list[list[int]]
    seeds: list[int]
    temperature: float
    response_tokens: int
    """Most tokens of a response."""


@dataclass(frozen=True)
class Responses:
    """Token ids and log-probabilities of all responses in request order, concatenated."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    """Number of tokens of each response."""
    truncated: np.ndarray
    """Whether each response was cut at the length limit."""

    def split(self) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probabilities) of each response."""
        ends = np.cumsum(self.lengths)[:-1]
        return [
            (t.tolist(), p.tolist())
            for t, p in zip(np.split(self.token_ids, ends), np.split(self.logprobs, ends), strict=True)
        ]


@dataclass(frozen=True)
class Payload:
    """An adapter as bytes, which vLLM's process boundary passes unchanged.

    The tensors are in the order of `names` and `shapes`, all of one dtype.
    """

    names: list[str]
    shapes: list[tuple[int, int]]
    dtype: str
    data: bytes
    digest: str
    """SHA-256 of the trainer's tensors, A and B, taken where they were packed."""
    a_stays: bool = False
    """Whether A is frozen. Engines then keep it, and use it for payloads that have B alone."""


@dataclass(frozen=True)
class Loaded:
    """What an engine says of an adapter that it has loaded."""

    size_bytes: int
    sent: str
    """SHA-256 of the tensors that the trainer packed."""
    held: list[str]
    """SHA-256 of the tensors that vLLM holds, of each of the engine's workers."""


def peft_names(factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """CPU tensors under the names that PEFT saves them by, from module -> (A, B)."""
    return {
        f"base_model.model.{module}.lora_{side}.weight": factor.detach().cpu().clone()
        for module, pair in factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }


def pack(
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    scales: dict[str, float],
    dtype: str,
    a_stays: bool = False,
    b_alone: bool = False,
) -> Payload:
    """The payload of an adapter, or of its B alone where engines have kept A.

    Given are module -> (A [r, d_in], B [d_out, r]) and module -> scale. Scales are folded into B in
    fp32, before the cast to `dtype`.
    """
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.detach()
        tensors[f"base_model.model.{module}.lora_B.weight"] = scales[module] * b.detach()
    flat = torch.cat([t.flatten() for t in tensors.values()]).to(getattr(torch, dtype)).cpu()
    whole = digest(list(tensors), [flat])
    parts = zip(tensors, flat.split([t.numel() for t in tensors.values()]), strict=True)
    sent = {name: part for name, part in parts if not b_alone or is_b(name)}
    shapes = [(tensors[name].shape[0], tensors[name].shape[1]) for name in sent]
    data = (torch.cat([*sent.values()]) if b_alone else flat).view(torch.uint8).numpy().tobytes()
    return Payload(list(sent), shapes, dtype, data, whole, a_stays)


def is_b(name: str) -> bool:
    """Whether a tensor of a payload is a B."""
    return ".lora_B." in name


def with_a(tensors: dict[str, torch.Tensor], kept_a: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a payload, with the A of `kept_a` before each B if it has B alone."""
    if not all(map(is_b, tensors)):
        return tensors
    names = [name for b in tensors for name in (b.replace(".lora_B.", ".lora_A."), b)]
    return {name: tensors[name] if is_b(name) else kept_a[name] for name in names}


def check_known(sent: Iterable[str], modules: Iterable[str], packed: Mapping[str, list[str]]) -> None:
    """Raises ValueError, one line, if an engine has no module for a part of an adapter.

    vLLM would leave it out in silence. Given are the names that vLLM has mapped the adapter's to,
    its modules with adapters, and fused module -> the names of its parts.
    """
    known = {*modules, *(part for parts in packed.values() for part in parts)}
    missing = sorted(set(sent) - known)
    if missing:
        raise ValueError(
            f"model.modules: got {missing[0].rpartition('.')[2]!r}, allowed: modules that vLLM has as well; "
            f"it has no {missing[0]} ({len(missing)} in all)"
        )


def digest(names: list[str], tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of CPU tensors and of their names, both in the order of `names`."""
    found = sha256("\n".join(names).encode())
    for tensor in tensors:
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def unpack(names: list[str], shapes: list[tuple[int, int]], dtype: str, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a payload, by name."""
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    parts = flat.split([rows * columns for rows, columns in shapes])
    return {name: part.view(rows, columns) for name, part, (rows, columns) in zip(names, parts, shapes, strict=True)}
