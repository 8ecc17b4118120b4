"""Prefix sharing: a prefix that samples of a micro-batch have in common is computed once.

Samples of a prompt repeat its tokens, and often the first tokens of each other's answers. A
micro-batch [B, T] becomes the tree of its distinct prefixes: one row of N <= B T nodes, each of
which attends to its ancestors. The decoder's hidden states are then copied back to [B, T]. Values
and gradients equal those of the plain batch up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class Tree:
    """The distinct prefixes of a batch, one per node."""

    tokens_N: torch.Tensor
    """Last token of each prefix."""
    depth_N: torch.Tensor
    """Position of that token in its sequence."""
    ancestors_NN: torch.Tensor
    """[i, j]: prefix j is a prefix of prefix i, or i itself."""
    node_BT: torch.Tensor
    """Node of the prefix that ends at each position; 0 at padding."""


@lru_cache(maxsize=64)
def tree(sequences: tuple[tuple[int, ...], ...]) -> Tree:
    """The prefix tree of a batch of token sequences.

    It is cached, because policy, reference and previous adapter see the same batches.
    """
    node_BT = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    tokens, depths, parents, levels = [], [], [], [0]
    node_of_row = [-1] * len(sequences)
    for depth in range(node_BT.shape[1]):
        found: dict[tuple[int, int], int] = {}
        for row, sequence in enumerate(sequences):
            if depth < len(sequence):
                parent, token = node_of_row[row], sequence[depth]
                node = found.setdefault((parent, token), levels[-1] + len(found))
                node_of_row[row] = node_BT[row, depth] = node
        parents += [parent for parent, _ in found]
        tokens += [token for _, token in found]
        depths += [depth] * len(found)
        levels.append(len(tokens))
    ancestors_NN = np.eye(len(tokens), dtype=bool)
    for first, end in pairwise(levels[1:]):  # level by level: the parent's ancestors, and itself
        ancestors_NN[first:end] |= ancestors_NN[parents[first:end]]
    return Tree(torch.tensor(tokens), torch.tensor(depths), torch.from_numpy(ancestors_NN), torch.from_numpy(node_BT))


class SharedPrefixes:
    """Hooks that make a transformers decoder compute shared prefixes once.

    The decoder is the model below the head. It must be called with input_ids, attention_mask and
    position_ids.
    """

    def __init__(self, decoder: nn.Module):
        self.node_BT: torch.Tensor | None = None
        self.on = True
        """If False, samples are computed separately, so that each has a gradient of its own."""
        decoder.register_forward_pre_hook(self._fold, with_kwargs=True)
        decoder.register_forward_hook(self._unfold)

    def _fold(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Replaces the inputs [B, T] by one row of N prefixes."""
        if not self.on:
            return args, kwargs
        tokens_BT = args[0] if args else kwargs["input_ids"]
        lengths_B = kwargs["attention_mask"].sum(1).tolist()
        found = tree(tuple(tuple(row[:n]) for row, n in zip(tokens_BT.tolist(), lengths_B, strict=True)))
        to = {"device": tokens_BT.device, "non_blocking": True}
        self.node_BT = pad(found.node_BT, (0, tokens_BT.shape[1] - found.node_BT.shape[1])).to(**to)
        one_row = {
            "input_ids": found.tokens_N[None].to(**to),
            "attention_mask": found.ancestors_NN[None, None].to(**to),
            "position_ids": found.depth_N[None].to(**to),
        }
        return (), {**kwargs, **one_row}

    def _unfold(self, decoder: nn.Module, args: tuple, output: Any) -> Any:
        """Replaces the hidden states of the N prefixes by those of [B, T]."""
        if not self.on:
            return output
        hidden_NH = output["last_hidden_state"][0]
        output["last_hidden_state"] = hidden_NH[self.node_BT]
        return output
