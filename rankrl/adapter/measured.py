"""The start of adapters by any method that needs the base: its weights, or samples of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from rankrl.adapter.gradient import policy_gradient
from rankrl.adapter.measure import Shapes, eva
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Reduce, Samples, walk_activations, walk_gradients
from rankrl.adapter.weights import principal_rows, start_from_weights
from rankrl.recipe.init import FROM_WEIGHTS, Init

PRINCIPAL = 32
"""Top directions of W of which `principal_share` speaks, for small adapters too."""


def measured_start(
    policy: Callable[[Batch], torch.Tensor],
    linears: dict[str, nn.Linear],
    shapes: Shapes,
    init: Init,
    rank: int,
    seed: int,
    batches: list[Batch],
    samples: Samples | None,
    reduce: Reduce,
) -> Start:
    """For adapters of up to `rank`. `policy` gives log-probabilities [B, A] of a batch; `batches` are this worker's, and all
    workers have as many; `samples` are those of all. `reduce` adds a tensor up over workers.
    """
    if init.method in FROM_WEIGHTS:
        return start_from_weights(linears, init.method, rank)
    assert samples is not None
    principal = principal_rows(linears, max(PRINCIPAL, init.off_principal))
    method, walk = (eva, walk_activations) if init.method == "eva" else (policy_gradient, walk_gradients)
    return method(partial(walk, policy, linears, batches), shapes, init, rank, seed, principal, samples, reduce)
