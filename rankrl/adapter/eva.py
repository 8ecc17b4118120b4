"""The leading subspace of a frozen base's activations (EVA), and sketches of second moments.

PEFT has EVA too, but its passes are not used: they gather all activations on every worker, hash
them in Python, and repeat until each worker decides for itself that it has converged. Here a linear
sketch is summed over workers.
"""

from __future__ import annotations

import torch

from rankrl.adapter.factors import completed
from rankrl.adapter.sketch import nystrom, orthonormal, overlap, random_basis
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Reduce, Samples, Sums, Walk, summed, tokens
from rankrl.recipe.init_section import Init

Shapes = dict[str, tuple[int, int]]
"""Module -> (d_in, d_out)."""


def moments(walk: Walk, omega: Sums, of_delta: bool, reduce: Reduce) -> Sums:
    """Sketches of second moments: per module [d + 1, k], from its Omega [d, k].

    The first d rows are C Omega, with C the sum over tokens of x x^T, or of delta delta^T if
    `of_delta`. The last row holds the trace of C.
    """

    def add(total: torch.Tensor, module: str, batch: Batch, x_BTi: torch.Tensor, delta_BTo: torch.Tensor) -> None:
        seen = tokens(batch, delta_BTo if of_delta else x_BTi)
        total[:-1] += seen.T @ (seen @ omega[module])
        total[-1] += seen.square().sum()

    return summed(walk, {m: o.new_zeros(o.shape[0] + 1, o.shape[1]) for m, o in omega.items()}, add, reduce)


def random_bases(shapes: Shapes, side: int, k: int, seed: int, like: torch.Tensor) -> Sums:
    """Random orthonormal columns [d, min(k, d_in, d_out)] per module.

    d is the dimension of the module's input (side 0) or output (side 1).
    """
    return {m: random_basis(seed, m, "io"[side], d[side], min(k, *d)).to(like) for m, d in shapes.items()}


def eva(
    walk: Walk, shapes: Shapes, init: Init, rank: int, seed: int, principal: Sums, samples: Samples, reduce: Reduce
) -> Start:
    """A start at the top right singular vectors of the activations (EVA, arXiv 2410.07170).

    The activations are those of all prompt and response tokens, not centred. This is subspace
    iteration in three passes: each multiplies C with the subspace that the pass before found.
    """
    like, start = next(iter(principal.values())), Start({})
    omega = random_bases(shapes, 0, rank + init.oversample, seed, like)
    for _ in range(2):
        omega = {m: orthonormal(y[:-1]) for m, y in moments(walk, omega, False, reduce).items()}
    for module, y in moments(walk, omega, False, reduce).items():
        v, squares = nystrom(y[:-1], omega[module])
        trace, most = float(y[-1, 0]), min(rank, *shapes[module])
        rows = completed(v.T[:most], seed, module, most, "orthonormal", v.T[:0])
        start.rows[module] = rows
        start.values[module] = (squares[:most] / (trace or 1.0)).tolist()
        start.diagnostics[module] = {
            "captured_energy": sum(start.values[module]),
            "principal_share": overlap(rows, principal[module].cpu()),
        }
    return start
