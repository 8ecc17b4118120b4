"""Shared prefixes computed once: the samples of a prompt repeat its tokens, and often the first tokens of each other's answers.

A micro-batch [B, T] becomes the tree of its distinct prefixes, one row of N <= B T nodes that attend to their ancestors, and the
decoder's hidden states are dealt out again to [B, T]. Values and gradients are those of the plain batch up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Tree:
    """The distinct prefixes of a batch."""

    tokens_N: torch.Tensor
    """Last token of each prefix."""
    depth_N: torch.Tensor
    """Its position."""
    ancestors_NN: torch.Tensor
    """[i, j]: prefix j is a prefix of prefix i, or i itself."""
    node_BT: torch.Tensor
    """The prefix that ends at each position; 0 at padding."""


def tree(tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> Tree:
    """The tree of a batch that is padded on the right."""
    batch, length = tokens_BT.shape
    vocabulary = int(tokens_BT.max()) + 1
    node_BT = torch.zeros_like(tokens_BT)
    parent_B = torch.full((batch,), -1, dtype=tokens_BT.dtype, device=tokens_BT.device)
    tokens, depths, parents, count = [], [], [], 0
    for t in range(length):
        rows = mask_BT[:, t].nonzero().flatten()
        keys, node_of_row = torch.unique((parent_B[rows] + 1) * vocabulary + tokens_BT[rows, t], return_inverse=True)
        node_BT[rows, t] = parent_B[rows] = node_of_row + count
        tokens.append(keys % vocabulary)
        parents.append(keys // vocabulary - 1)
        depths.append(torch.full_like(keys, t))
        count += len(keys)
    parent_N = torch.cat(parents)
    ancestors_NN = torch.eye(count, dtype=torch.bool, device=tokens_BT.device)
    first = 0
    for t, keys in enumerate(parents):  # a level at a time: the ancestors of the parent, and itself
        if t:
            ancestors_NN[first : first + len(keys)] |= ancestors_NN[parent_N[first : first + len(keys)]]
        first += len(keys)
    return Tree(torch.cat(tokens), torch.cat(depths), ancestors_NN, node_BT)


class SharedPrefixes:
    """Hooks on a transformers decoder (the model below the head) that is called with input_ids, attention_mask and position_ids."""

    def __init__(self, decoder: nn.Module):
        self.node_BT: torch.Tensor | None = None
        decoder.register_forward_pre_hook(self._fold, with_kwargs=True)
        decoder.register_forward_hook(self._unfold)

    def _fold(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        tokens_BT = args[0] if args else kwargs["input_ids"]
        found = tree(tokens_BT, kwargs["attention_mask"])
        self.node_BT = found.node_BT
        one_row = {
            "input_ids": found.tokens_N[None],
            "attention_mask": found.ancestors_NN[None, None],
            "position_ids": found.depth_N[None],
        }
        return (), {**kwargs, **one_row}

    def _unfold(self, decoder: nn.Module, args: tuple, output: Any) -> Any:
        hidden_NH = output["last_hidden_state"][0]
        output["last_hidden_state"] = hidden_NH[self.node_BT]
        return output
