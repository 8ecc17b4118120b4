"""Packing: the samples of a micro-batch in one row, without padding, and micro-batches by tokens.

A forward pass under ZeRO-3 gathers the whole base, whatever the micro-batch: fewer and fuller
micro-batches mean fewer gathers. Upstream packs too, with flash-attn's functions; the positions,
which start at 0 with every sample, tell transformers' attention where a sample begins.
"""

from __future__ import annotations

from math import lcm
from typing import Any

import torch
from openrlhf.utils.seqlen_balancing import get_minimum_num_micro_batch_size, get_seqlen_balanced_partitions
from torch import nn
from transformers.modeling_flash_attention_utils import _pad_input, _unpad_input


class PackedRows:
    """Hooks that make a transformers decoder compute a padded batch as one row without padding.

    The decoder is the model below the head. It must be called with input_ids, attention_mask and
    position_ids, by name.
    """

    def __init__(self, decoder: nn.Module):
        self.on = True
        """If False, batches stay as they are."""
        self.indices_N: torch.Tensor | None = None
        self.shape: tuple[int, int] = (0, 0)
        decoder.register_forward_pre_hook(self._pack, with_kwargs=True)
        decoder.register_forward_hook(self._unpack)

    def _pack(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Replaces the inputs [B, T] by one row of their N tokens."""
        if not self.on:
            return args, kwargs
        tokens_BT = args[0] if args else kwargs["input_ids"]
        positions_BT = kwargs["position_ids"]
        both_BT2 = torch.stack([tokens_BT, positions_BT], dim=-1)
        row_N2, self.indices_N, *_ = _unpad_input(both_BT2, kwargs["attention_mask"])
        self.shape = tokens_BT.shape
        row = {"input_ids": row_N2[None, :, 0], "position_ids": row_N2[None, :, 1], "attention_mask": None}
        return (), {**kwargs, **row}

    def _unpack(self, decoder: nn.Module, args: tuple, output: Any) -> Any:
        """Replaces the hidden states of the row by those of [B, T], 0 at padding."""
        if self.on:
            output["last_hidden_state"] = _pad_input(output["last_hidden_state"][0], self.indices_N, *self.shape)
        return output


SAME = 0.05
"""Largest difference of hidden states, as a share of their norm, that is rounding. In bfloat16."""


@torch.no_grad()
def keeps_samples_apart(model: nn.Module, rows: PackedRows, device: Any) -> bool:
    """Whether a row's samples do not see each other, for two samples and hidden states of `model`.

    Layers that go by the order in a row alone, as recurrent ones do, would mix them.
    """
    ids_BT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]], device=device)
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=device)
    inputs = {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "position_ids": torch.arange(4, device=device).expand(2, 4),
    }
    packed = model(**inputs).last_hidden_state[mask_BT.bool()].float()
    rows.on = False
    padded = model(**inputs).last_hidden_state[mask_BT.bool()].float()
    rows.on = True
    return bool((packed - padded).norm() <= SAME * padded.norm())


def within_tokens(shares: list[list[int]], lengths: list[int], most_tokens: int) -> list[list[list[int]]]:
    """Micro-batches of each share's samples, the same number of them for every share.

    `lengths` are the samples' tokens, by place. No micro-batch has more than `most_tokens` tokens,
    except a single sample that has. Those of a share have about the same number of tokens. All
    workers must make as many forward passes as the others, which gather the base together.
    """
    count = max(get_minimum_num_micro_batch_size([lengths[i] for i in share], most_tokens, 1, 1) for share in shares)
    while True:
        found = [_balanced(share, lengths, count) for share in shares]
        over = (len(part) > 1 and sum(lengths[i] for i in part) > most_tokens for parts in found for part in parts)
        if not any(over):
            return found
        count += 1


def _balanced(share: list[int], lengths: list[int], count: int) -> list[list[int]]:
    parts = get_seqlen_balanced_partitions([lengths[i] for i in share], count, equal_size=False)
    return [[share[i] for i in part] for part in parts]


def shares_of_steps(order: list[int], steps: int, workers: int, critic_workers: int) -> list[list[int]]:
    """Equal shares of the samples in `order`: whole ones for every optimizer step and worker.

    The policy's workers and the critic's, which may be more or fewer, get consecutive shares.
    """
    size = len(order) // (steps * lcm(workers, critic_workers))
    return [order[i : i + size] for i in range(0, len(order), size)]
