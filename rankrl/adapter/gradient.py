"""Right singular directions of the base's policy gradient that repeat themselves on prompts that were not used to find them.

The gradient G [d_out, d_in] of a module is a sum over tokens of delta x^T, with x its input and delta the gradient at its output.
It is never formed: what is summed is G times a narrow matrix, or a narrow matrix times G, so that a module costs
O((d_in + d_out) (rank + oversample)) however many tokens there are. Passes over the samples, each forward and backward:

1. subspace iteration for the gradients G_a, G_b of the two halves of the prompts (Halko et al. 2011): Y = G Omega, then Z = Q^T G
   with Q an orthonormal basis of Y, then Y = G Q' with Q' one of Z^T, and so on. Y = G Omega alone would lose a signal among the
   noise of a gradient from few samples: a random Omega sees a share k / d_in of its energy, and all of the noise;
2. singular directions (u_i, v_i) of each half from the last Z;
3. u_i^T g_n v_i of every sample n, with the directions of half a. The signal in half b, the sum of advantage_n u_i^T g_n v_i,
   and its null distribution under advantages shuffled within prompts, are sums over these numbers.
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
"""Of a subspace; a gap of singular values g counts as g^5."""
Directions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""U [d_out, k], singular values [k], V [d_in, k]."""


@dataclass(frozen=True)
class Coordinates:
    """In which x and delta are looked at; empty lists leave them alone."""

    of_x: list[LowRankMap]
    of_delta: list[LowRankMap]
    fisher: list[float] = field(default_factory=list)
    """Leading eigenvalues of the second moment of x times the trace of that of delta."""

    def rows(self, rows_Nd: torch.Tensor) -> torch.Tensor:
        """Rows [N, d_in] that read off raw x what `rows_Nd` read off the coordinates; the maps are symmetric."""
        return through(self.of_x[::-1], rows_Nd)


@dataclass(frozen=True)
class GradientSketch:
    """The passes. Sums are over both halves: the leading axis."""

    walk: Walk
    shapes: Shapes
    coordinates: dict[str, Coordinates]
    columns: dict[str, int]
    """k of each module."""
    samples: Samples
    reduce: Reduce

    @cached_property
    def per_token(self) -> list[float]:
        """One over the response tokens of each half: gradients are means over tokens."""
        return [1 / max(int(self.samples.tokens_N[self.samples.half_N == half].sum()), 1) for half in (0, 1)]

    def x(self, module: str, batch: Batch, x_BTi: torch.Tensor) -> torch.Tensor:
        """[B T, d_in]."""
        return tokens(batch, through(self.coordinates[module].of_x, x_BTi))

    def delta(self, module: str, batch: Batch, delta_BTo: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
        """[B T, d_out]."""
        return tokens(batch, through(self.coordinates[module].of_delta, delta_BTo), weight_B)

    def weights(self, batch: Batch) -> list[torch.Tensor]:
        """Of the samples of a batch in the gradient of each half."""
        return [batch.advantage_B * (batch.half_B == half) * self.per_token[half] for half in (0, 1)]

    def ranges(self, omega: Sums) -> Sums:
        """Y = G Omega [2, d_out, k], from Omega [2, d_in, k]."""

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            x_Ni = self.x(module, batch, x)
            for half, weight_B in enumerate(self.weights(batch)):
                total[half] += self.delta(module, batch, delta, weight_B).T @ (x_Ni @ omega[module][half])

        zeros = {m: o.new_zeros(2, self.shapes[m][1], self.columns[m]) for m, o in omega.items()}
        return summed(self.walk, zeros, add, self.reduce)

    def projected(self, q: Sums) -> Sums:
        """Z = Q^T G [2, k, d_in], from Q [2, d_out, k]."""

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            x_Ni = self.x(module, batch, x)
            for half, weight_B in enumerate(self.weights(batch)):
                total[half] += (self.delta(module, batch, delta, weight_B) @ q[module][half]).T @ x_Ni

        zeros = {m: b.new_zeros(2, self.columns[m], self.shapes[m][0]) for m, b in q.items()}
        return summed(self.walk, zeros, add, self.reduce)

    def directions(self, y: Sums) -> dict[str, list[Directions]]:
        """Of both halves, from their first ranges."""
        for _ in range(ITERATIONS):
            z = self.projected(bases(y))
            y = self.ranges(bases({m: halves.mT for m, halves in z.items()}))
        q = bases(y)
        return {m: [directions(*pair) for pair in zip(q[m], z, strict=True)] for m, z in self.projected(q).items()}

    def contributions(self, found: dict[str, list[Directions]]) -> Sums:
        """u_i^T g_n v_i [N, k], with the directions of half a and g_n the gradient of sample n's log-probability."""

        def add(total: torch.Tensor, module: str, batch: Batch, x: torch.Tensor, delta: torch.Tensor) -> None:
            u, _, v = found[module][0]
            along_u = self.delta(module, batch, delta, torch.ones_like(batch.advantage_B)) @ u
            product = along_u * (self.x(module, batch, x) @ v)
            total.index_add_(0, batch.row_B.to(total.device), product.unflatten(0, x.shape[:2]).sum(1))

        zeros = {m: v.new_zeros(len(self.samples.group_N), self.columns[m]) for m, ((_, _, v), _) in found.items()}
        return summed(self.walk, zeros, add, self.reduce)


def bases(y: Sums) -> Sums:
    """Orthonormal bases of the columns of both halves [2, d, k]."""
    return {m: torch.stack([orthonormal(half) for half in halves]) for m, halves in y.items()}


def coordinates(
    walk: Walk, shapes: Shapes, init: Init, k: int, seed: int, principal: Sums, reduce: Reduce
) -> dict[str, Coordinates]:
    """Off the top `init.off_principal` directions of W, and whitened if `init.fisher`: K-FAC's factors, each by its k leading
    eigenvectors and the trace of the rest, so that a whitened direction is that of most gain per KL."""
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
    """Rows for adapters of up to `rank`: the directions of half a whose signal in half b is beyond chance, ordered by it, then
    drawn ones. `principal`: the top right singular vectors [K, d_in] of each W, K at least `init.off_principal`."""
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
