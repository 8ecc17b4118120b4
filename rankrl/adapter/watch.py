"""Sums over the tokens of a frozen base's linear modules, taken by hooks while batches pass through it."""

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
    """Place of each sample among all N."""
    half_B: torch.Tensor
    """0 or 1: the half of the prompts that it belongs to."""
    advantage_B: torch.Tensor
    real_B: torch.Tensor
    """1, or 0 for a copy that only keeps workers in step."""


@dataclass(frozen=True)
class Samples:
    """All N samples, of which each worker's batches hold some."""

    advantage_N: torch.Tensor
    group_N: torch.Tensor
    """Number of the prompt."""
    half_N: torch.Tensor
    tokens_N: torch.Tensor
    """Response tokens."""


Sums = dict[str, torch.Tensor]
Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Adds a tensor up over workers."""
See = Callable[[str, Batch, torch.Tensor, torch.Tensor], None]
"""Called with module, batch, x [B, T, d_in] and delta [B, T, d_out] in fp32: input, and gradient at the output of the sum of all
log-probabilities. A sample's gradient is its own: no sample's tokens are computed together with another's."""
Walk = Callable[[See], None]
"""Takes all of a worker's batches past a `See`."""
Add = Callable[[torch.Tensor, str, Batch, torch.Tensor, torch.Tensor], None]
"""Adds what a `See` is called with to a module's sum, in place."""


def summed(walk: Walk, zeros: Sums, add: Add, reduce: Reduce) -> Sums:
    """`zeros`, one tensor per module, after all batches of all workers were added to them."""

    @torch.no_grad()
    def see(module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
        add(zeros[module], module, batch, x, delta)

    walk(see)
    return {module: reduce(total) for module, total in zeros.items()}


@contextmanager
def hooked(linears: dict[str, nn.Linear], hook: Callable[[str, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Calls hook(module, x, output) in every forward pass."""
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
    """`policy` gives log-probabilities [B, A]. The base is frozen, so the graph starts at the first hooked output."""
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
    """Forward passes alone; `see` gets the output in place of delta."""
    for batch in batches:

        def show(name: str, x: torch.Tensor, output: torch.Tensor, batch: Batch = batch) -> None:
            see(name, batch, x.float(), output)

        with hooked(linears, show), torch.no_grad():
            policy(batch)


def tokens(batch: Batch, x_BTd: torch.Tensor, weight_B: torch.Tensor | None = None) -> torch.Tensor:
    """[B T, d]: tokens of real samples, times their sample's weight; padding and copies are 0."""
    weight_B = batch.real_B if weight_B is None else weight_B * batch.real_B
    return (x_BTd * (weight_B[:, None] * batch.attention_mask_BT).to(x_BTd)[..., None]).flatten(0, 1)
