"""Sums over all tokens that pass through a frozen base's linear modules, collected by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Batch:
    """A micro-batch of samples [B, T], padded on the right."""

    sequences_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    action_mask_BA: torch.Tensor
    row_B: torch.Tensor
    """Index of each sample among all N samples."""
    half_B: torch.Tensor
    """0 or 1: the half of the prompts that each sample belongs to."""
    advantage_B: torch.Tensor
    real_B: torch.Tensor
    """1 for a sample, 0 for a copy that only gives all workers the same number of batches."""


@dataclass(frozen=True)
class Samples:
    """All N samples; the batches of one worker hold some of them."""

    advantage_N: torch.Tensor
    group_N: torch.Tensor
    """Index of each sample's prompt."""
    half_N: torch.Tensor
    tokens_N: torch.Tensor
    """Number of response tokens of each sample."""


Sums = dict[str, torch.Tensor]
"""Module -> a tensor that is summed over tokens, or a factor of such a sum."""
Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over workers."""
See = Callable[[str, Batch, torch.Tensor, torch.Tensor], None]
"""Called with module, batch, x [B, T, d_in] and delta [B, T, d_out], both fp32.

x is the module's input, delta the gradient of the sum of all log-probabilities with respect to its
output. Gradients of samples do not mix: no sample's tokens are computed with another's.
"""
Walk = Callable[[See], None]
"""Runs all batches of a worker and calls a `See` for each module of each batch."""
Add = Callable[[torch.Tensor, str, Batch, torch.Tensor, torch.Tensor], None]
"""Called with a module's sum and the arguments of a `See`, which it adds to the sum in place."""


def summed(walk: Walk, zeros: Sums, add: Add, reduce: Reduce) -> Sums:
    """Module -> its sum over all batches of all workers. It starts from `zeros`, in place."""

    @torch.no_grad()
    def see(module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
        add(zeros[module], module, batch, x, delta)

    walk(see)
    return {module: reduce(total) for module, total in zeros.items()}


@contextmanager
def hooked(
    linears: dict[str, nn.Linear], hook: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """A context in which every forward pass calls hook(module, x, output).

    What it returns, if anything, takes the place of the output.
    """
    handles = [
        linear.register_forward_hook(lambda _, args, output, name=name: hook(name, args[0], output))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def walk_gradients(
    policy: Callable[[Batch], torch.Tensor], linears: dict[str, nn.Linear], batches: list[Batch], see: See
) -> None:
    """Calls `see` for each module of each batch, in forward and backward passes.

    `policy` returns log-probabilities [B, A]. The base is frozen, so the autograd graph starts at
    the first hooked output.
    """
    for batch in batches:

        def attach(name: str, x: torch.Tensor, output: torch.Tensor, batch: Batch = batch) -> None:
            if not torch.is_grad_enabled():  # the first of the two passes of gradient checkpointing
                return
            if not output.requires_grad:
                output.requires_grad_()
            x = x.detach()
            output.register_hook(lambda delta: see(name, batch, x.float(), delta.float()))

        with hooked(linears, attach), torch.enable_grad():
            logprobs_BA = policy(batch)
            (logprobs_BA.sum(1) * batch.real_B.to(logprobs_BA.device)).sum().backward()


def walk_activations(
    policy: Callable[[Batch], Any], linears: dict[str, nn.Linear], batches: list[Batch], see: See
) -> None:
    """Calls `see` in forward passes alone, with a module's output in place of delta."""
    for batch in batches:

        def show(name: str, x: torch.Tensor, output: torch.Tensor, batch: Batch = batch) -> None:
            see(name, batch, x.float(), output)

        with hooked(linears, show), torch.no_grad():
            policy(batch)


def tokens(batch: Batch, x_BTd: torch.Tensor, weight_B: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens of real samples [B T, d], times their sample's weight; 0 for padding and copies."""
    weight_B = batch.real_B if weight_B is None else weight_B * batch.real_B
    return (x_BTd * (weight_B[:, None] * batch.attention_mask_BT).to(x_BTd)[..., None]).flatten(0, 1)
