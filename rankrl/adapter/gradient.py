"""Right singular directions of the base's policy gradient that also hold on other prompts.

The gradient G [d_out, d_in] of a module is a sum over tokens of delta x^T, with x its input and
delta the gradient at its output. It is never formed. What is summed is G times a narrow matrix, or
a narrow matrix times G, so that a module takes O((d_in + d_out) (rank + oversample)) memory for any
number of tokens. The passes over the samples, each forward and backward:

1. Subspace iteration for the gradients G_a, G_b of the two halves of the prompts (Halko et al.
   2011): Y = G Omega, then Z = Q^T G with Q an orthonormal basis of Y, then Y = G Q' with Q' an
   orthonormal basis of Z^T, and so on. Y = G Omega alone would lose a signal in the noise of a
   gradient from few samples: a random Omega keeps a share k / d_in of the signal's energy, and all
   of the noise.
2. Singular directions (u_i, v_i) of each half, from the last Z.
3. u_i^T g_n v_i for every sample n, with the directions of half a. Sums over these numbers give the
   signal in half b, the sum of advantage_n u_i^T g_n v_i, and its null distribution under
   advantages that are shuffled within prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from rankrl.adapter.eva import Shapes, moments, random_bases
from rankrl.adapter.factors import completed
from rankrl.adapter.sketch import (
    PERMUTATIONS,
    LowRankMap,
    directions,
    nystrom,
    off,
    orthonormal,
    overlap,
    permuted,
    reproducible,
    through,
    whitening,
)
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Reduce, Samples, Sums, Walk, summed, tokens
from rankrl.recipe.init_section import Init

ITERATIONS = 2
"""Rounds of subspace iteration. They raise a ratio g between singular values to g^5."""
Directions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""U [d_out, k], singular values [k], V [d_in, k]."""


@dataclass(frozen=True)
class Coordinates:
    """Maps of a module's x and delta, applied before sketching; an empty list changes nothing."""

    of_x: list[LowRankMap]
    of_delta: list[LowRankMap]
    fisher: list[float] = field(default_factory=list)
    """Leading eigenvalues of the second moment of x, times the trace of that of delta."""

    def rows(self, rows_Nd: torch.Tensor) -> torch.Tensor:
        """Rows [N, d_in] that act on raw x as `rows_Nd` act on mapped x; the maps are symmetric."""
        return through(self.of_x[::-1], rows_Nd)


@dataclass(frozen=True)
class GradientSketch:
    """The passes over the samples. The first axis of the matrices is the half of the prompts."""

    walk: Walk
    shapes: Shapes
    coordinates: dict[str, Coordinates]
    columns: dict[str, int]
    """Module -> k, the number of columns of its sketch."""
    samples: Samples
    reduce: Reduce

    @cached_property
    def per_token(self) -> list[float]:
        """1 / (number of response tokens) of each half: gradients are means over tokens."""
        return [1 / max(int(self.samples.tokens_N[self.samples.half_N == half].sum()), 1) for half in (0, 1)]

    def x(self, module: str, batch: Batch, x_BTi: torch.Tensor) -> torch.Tensor:
        """The mapped inputs of all tokens, [B T, d_in]."""
        return tokens(batch, through(self.coordinates[module].of_x, x_BTi))

    def delta(self, module: str, batch: Batch, delta_BTo: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
        """The mapped output gradients of all tokens, [B T, d_out], times their sample's weight."""
        return tokens(batch, through(self.coordinates[module].of_delta, delta_BTo), weight_B)

    def weights(self, batch: Batch) -> list[torch.Tensor]:
        """The weights [B] of a batch's samples in the gradient of each half."""
        return [batch.advantage_B * (batch.half_B == half) * self.per_token[half] for half in (0, 1)]

    def ranges(self, omega: Sums) -> Sums:
        """Module -> Y = G Omega [2, d_out, k], from its Omega [2, d_in, k]."""

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            x_Ni = self.x(module, batch, x)
            for half, weight_B in enumerate(self.weights(batch)):
                total[half] += self.delta(module, batch, delta, weight_B).T @ (x_Ni @ omega[module][half])

        zeros = {m: o.new_zeros(2, self.shapes[m][1], self.columns[m]) for m, o in omega.items()}
        return summed(self.walk, zeros, add, self.reduce)

    def projected(self, q: Sums) -> Sums:
        """Module -> Z = Q^T G [2, k, d_in], from its Q [2, d_out, k]."""

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            x_Ni = self.x(module, batch, x)
            for half, weight_B in enumerate(self.weights(batch)):
                total[half] += (self.delta(module, batch, delta, weight_B) @ q[module][half]).T @ x_Ni

        zeros = {m: b.new_zeros(2, self.columns[m], self.shapes[m][0]) for m, b in q.items()}
        return summed(self.walk, zeros, add, self.reduce)

    def directions(self, y: Sums) -> dict[str, list[Directions]]:
        """Module -> the singular directions of both halves, by iteration from Y = G Omega."""
        for _ in range(ITERATIONS):
            z = self.projected(bases(y))
            y = self.ranges(bases({m: halves.mT for m, halves in z.items()}))
        q = bases(y)
        return {m: [directions(*pair) for pair in zip(q[m], z, strict=True)] for m, z in self.projected(q).items()}

    def contributions(self, found: dict[str, list[Directions]]) -> Sums:
        """Module -> u_i^T g_n v_i [N, k], with u_i and v_i the directions of half a.

        g_n is the gradient of sample n's log-probability.
        """

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            u, _, v = found[module][0]
            along_u = self.delta(module, batch, delta, torch.ones_like(batch.advantage_B)) @ u
            product = along_u * (self.x(module, batch, x) @ v)
            total.index_add_(0, batch.row_B.to(total.device), product.unflatten(0, x.shape[:2]).sum(1))

        zeros = {m: v.new_zeros(len(self.samples.group_N), self.columns[m]) for m, ((_, _, v), _) in found.items()}
        return summed(self.walk, zeros, add, self.reduce)


def bases(y: Sums) -> Sums:
    """Module -> orthonormal bases [2, d, k] of the columns of both halves."""
    return {m: torch.stack([orthonormal(half) for half in halves]) for m, halves in y.items()}


def coordinates(
    walk: Walk, shapes: Shapes, init: Init, k: int, seed: int, principal: Sums, reduce: Reduce
) -> dict[str, Coordinates]:
    """Module -> the maps in which its gradient is measured.

    x is projected off the top `init.off_principal` right singular vectors of W. With `init.fisher`,
    x and delta are whitened with K-FAC's factors, each known by its k leading eigenvectors and the
    trace of the rest, so that a leading direction is the one of most gain per KL.
    """
    projections = {m: [off(principal[m][: init.off_principal])] if init.off_principal else [] for m in shapes}
    if not init.fisher:
        return {m: Coordinates(projections[m], []) for m in shapes}
    like = next(iter(principal.values()))
    sides: list[dict[str, tuple[LowRankMap, torch.Tensor, float]]] = []
    for side in (0, 1):
        first = random_bases(shapes, side, k, seed, like)
        omega = {m: orthonormal(y[:-1]) for m, y in moments(walk, first, side == 1, reduce).items()}
        sides.append({})
        for m, y in moments(walk, omega, side == 1, reduce).items():
            vectors, values = nystrom(y[:-1], omega[m])
            sides[side][m] = (whitening(vectors, values, float(y[-1, 0])), values, float(y[-1, 0]))
    (of_x, of_delta) = sides
    return {
        m: Coordinates([*projections[m], of_x[m][0]], [of_delta[m][0]], (of_x[m][1] * of_delta[m][2]).tolist())
        for m in shapes
    }


def policy_gradient(
    walk: Walk, shapes: Shapes, init: Init, rank: int, seed: int, principal: Sums, samples: Samples, reduce: Reduce
) -> Start:
    """A start from the policy gradient, for adapters of up to `rank`.

    Its rows are the directions of half a whose signal in half b is beyond chance, the strongest
    first, then drawn ones. `principal`: the top right singular vectors [K, d_in] of each W, with K
    at least `init.off_principal`.
    """
    k, like, start = rank + init.oversample, next(iter(principal.values())), Start({})
    frame = coordinates(walk, shapes, init, k, seed, principal, reduce)
    omega = random_bases(shapes, 0, k, seed, like)
    sketch = GradientSketch(walk, shapes, frame, {m: o.shape[1] for m, o in omega.items()}, samples, reduce)
    y = sketch.ranges({m: o.expand(2, *o.shape) for m, o in omega.items()})
    found = sketch.directions(y)
    contributions = sketch.contributions(found)
    held_out_N = samples.half_N == 1
    advantage_N = samples.advantage_N[held_out_N] * sketch.per_token[1]
    null_PN = permuted(advantage_N, samples.group_N[held_out_N], PERMUTATIONS, seed)
    for module, shape in shapes.items():
        signal_k, keep_k = reproducible(contributions[module].cpu()[held_out_N], advantage_N, null_PN)
        most = min(rank, *shape)
        order = signal_k.masked_fill(~keep_k, -torch.inf).argsort(descending=True)[: min(int(keep_k.sum()), most)]
        v_a, v_b = (v.T.cpu() for _, _, v in found[module])
        kept = frame[module].rows(found[module][0][2].T).cpu()[order]
        rows = completed(kept, seed, module, most, init.fallback, principal[module][: init.off_principal])
        start.rows[module] = rows
        start.values[module] = [*signal_k[order].tolist(), *[0.0] * (most - len(order))]
        start.fisher[module] = frame[module].fisher[:most]
        energy = float(y[module][1].square().sum()) * shape[0] / sketch.columns[module]  # of G_b, in expectation
        top = max(len(order), 1)
        start.diagnostics[module] = {
            "kept": len(order),
            "captured_energy": float(signal_k[order].square().sum()) / energy if energy else 0.0,
            "halves_agreement": overlap(v_a[:top], v_b[:top]),
            "principal_share": overlap(rows, principal[module].cpu()),
        }
    return start
