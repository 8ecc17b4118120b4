"""Tensors sent between Ray's processes as arrays.

torch pickles each tensor as a file of its own, which takes longer than using a small one.
"""

from __future__ import annotations

import numpy as np
import ray.util
import torch


def send_tensors_as_arrays() -> None:
    """Makes this process send tensors through Ray as arrays from now on.

    Tensors arrive on the CPU; views and gradients are not kept.
    """
    ray.util.register_serializer(torch.Tensor, serializer=to_array, deserializer=to_tensor)


def to_array(tensor: torch.Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    """A tensor as (bytes, dtype, shape). It is sent as bytes because NumPy has no bfloat16."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)


def to_tensor(sent: tuple[np.ndarray, torch.dtype, tuple[int, ...]]) -> torch.Tensor:
    """The tensor that `to_array` was given, on the CPU."""
    data, dtype, shape = sent
    if not data.size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(data.copy()).view(dtype).reshape(shape)  # a copy: what Ray hands over is read-only
