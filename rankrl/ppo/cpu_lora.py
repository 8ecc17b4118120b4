"""vLLM's LoRA layers on a CPU, with tokens grouped by adapter.

vLLM 0.29's CPU fallback (lora/ops/torch_ops/lora_ops.py) copies an adapter's weights once per
token, and applies the adapter of the last slot to tokens of the base when both are in one batch.
GPU runs have kernels of their own and never load this file.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.nn.functional import pad
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

ROWS = 16
"""Least number of rows of a matrix product. From this number on, the BLAS library rounds a row the
same way whatever the other rows are. Smaller batches are padded, so that a run's log-probabilities
do not depend on which runs share its batch."""


class GroupedAdapters(PunicaWrapperCPU):
    """PunicaWrapperCPU with one product per adapter and module, equal to vLLM's up to rounding."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Groups the tokens of an engine step by adapter. vLLM calls it once per step."""
        super().update_metadata(*args, **kwargs)
        self.by_token = groups(self.token_lora_indices)
        self.by_sample = groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """y [T, sum(output_slices)] += scale x [T, d_in] A^T B^T, slice by slice.

        Each token uses the A and B of its own adapter.
        """
        add(self.by_token, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """y [T, d] += x [T, r] B^T for adapters of the embedding, where x is the output of A."""
        for slot, rows in self.by_token:
            b = lora_b_stacked[slot].squeeze(0)
            if b.any():
                y[rows] += x[rows].to(y.dtype) @ b.to(y.dtype).T

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """y [S, V] += scale x [S, d] A^T B^T for adapters of the output layer."""
        with_logits = [(slot, rows) for slot, rows in self.by_sample if lora_b_stacked[slot].any()]
        width = min(y.shape[-1], lora_b_stacked.shape[-2])
        add(with_logits, y, x, (lora_a_stacked,), (lora_b_stacked,), scale, (width,))


Rows: TypeAlias = "torch.Tensor | slice"


def groups(slots_T: torch.Tensor) -> list[tuple[int, Rows]]:
    """(slot, its rows) of each adapter in a batch. Rows that follow each other are a slice.

    `slots_T` is the slot of each token. Slot -1 is the base, which is left out.
    """
    found = []
    for slot in torch.unique(slots_T).tolist():
        rows = (slots_T == slot).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        found.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return [(slot, rows) for slot, rows in found if slot >= 0]


def add(
    by_slot: list[tuple[int, Rows]],
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: tuple[torch.Tensor, ...],
    b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
) -> None:
    """Adds each adapter's product to its own rows of y, in place.

    As in vLLM's kernels, x A^T is computed in fp32 and the rest in y's precision. `a_stacked[i]`
    [slots, 1, r, d_in] and `b_stacked[i]` [slots, 1, d_out, r] belong to slice i of y, which is
    `widths[i]` wide.
    """
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, rows in by_slot:
        x_rows, y_rows = x[rows], y[rows]  # of a slice these are views, and y is changed in place
        count = len(x_rows)
        x_rows = x_rows.float() if count >= ROWS else pad(x_rows.float(), (0, 0, 0, ROWS - count))
        at = 0
        for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
            low_rank = x_rows @ a[slot].squeeze(0).float().T
            if scale != 1:  # ours is in B
                low_rank *= scale
            y_rows[:, at : at + width] += (low_rank.to(y.dtype) @ b[slot].squeeze(0).to(y.dtype).T)[:count, :width]
            at += width
        if not isinstance(rows, slice):
            y.index_copy_(0, rows, y_rows)
