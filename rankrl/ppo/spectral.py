"""An optimizer whose step moves delta W = scale B A by a given spectral norm, at every rank.

It is the step of LoRA-Muon (Cesista et al., arXiv 2606.12921). A factor X [n, r] moves beside its
partner Y [m, r] (delta W = scale X Y^T, so X is B and Y is A^T, or the other way round) by

    dX = -(eta / scale) msign(M P) P,    P = (Y^T Y)^(-1/2),    msign(Z) = Z (Z^T Z)^(-1/2)

where M is the running mean of X's gradient. Y P has orthonormal columns, so scale dX Y^T has the
spectral norm eta: neither rank, nor alpha, nor how the product is split into factors changes it.
Two factors that move share the rate, half each, so that the tangent step stays within it.

That bounds scale (dB A + B dA), not scale dB dA: where B has a direction near 0, dA is as large as
one likes. So P is damped: singular values of Y below a tenth of its largest count as that much, and
those of B at least as one step of B. Then scale dB dA is at most 2.5 eta, and as a rule far less.
While B is 0, A has no gradient and stays, and B has the whole rate.

Inverse square roots are of r x r matrices, in fp64; no larger matrix is decomposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor, float]
"""(A [r, d_in], B [d_out, r], scale) of a module."""
CONDITION = 1e-2
"""Least eigenvalue of a partner's Gram matrix, as a share of its largest."""
ROUNDING = 1e-10
"""The same of a mean gradient's: singular values 1e5 times below the largest are rounding."""


def inverse_root(gram_Mrr: torch.Tensor, share: float, least_M: torch.Tensor) -> torch.Tensor:
    """The inverse square roots of positive semidefinite matrices [M, r, r], in fp64.

    Eigenvalues count as at least `share` of the largest, and `least_M`. That of 0, with nothing
    least, is 0. NaN and infinity give NaN, which a run notices; eigh would raise.
    """
    if not gram_Mrr.isfinite().all():
        return torch.full_like(gram_Mrr, torch.nan)
    values_Mr, vectors_Mrr = torch.linalg.eigh(gram_Mrr)
    floor_M = torch.maximum(share * values_Mr[:, -1], least_M.to(values_Mr))
    raised_Mr = torch.maximum(values_Mr, floor_M[:, None])
    roots_Mr = torch.where(raised_Mr > 0, raised_Mr.rsqrt(), 0)
    return (vectors_Mrr * roots_Mr[:, None]) @ vectors_Mrr.mT


def inverse_roots(grams: Sequence[torch.Tensor], share: float, leasts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The `inverse_root` of each matrix [r, r]; those of one size are computed together."""
    found: dict[int, torch.Tensor] = {}
    for size in {len(gram) for gram in grams}:
        at = [i for i, gram in enumerate(grams) if len(gram) == size]
        of_size = [torch.stack([many[i] for i in at]) for many in (grams, leasts)]
        found.update(zip(at, inverse_root(of_size[0], share, of_size[1]), strict=True))
    return [found[i] for i in range(len(grams))]


def gram(tall_nr: torch.Tensor) -> torch.Tensor:
    """X^T X [r, r] in fp64."""
    wide = tall_nr.double()
    return wide.T @ wide


def directions(
    means: Sequence[torch.Tensor], partners: Sequence[torch.Tensor], leasts: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """msign(M P) P [n, r] of each mean gradient M [n, r] and partner Y [m, r], in fp32.

    `leasts`: the least eigenvalue of each Y^T Y. As P and (P M^T M P)^(-1/2) are r x r, M is
    multiplied by one matrix.
    """
    roots = inverse_roots([gram(partner) for partner in partners], CONDITION, leasts)
    none = [torch.zeros_like(least) for least in leasts]
    signs = inverse_roots([p @ gram(mean) @ p for mean, p in zip(means, roots, strict=True)], ROUNDING, none)
    return [mean @ (p @ q @ p).to(mean.dtype) for mean, p, q in zip(means, roots, signs, strict=True)]


class Spectral(torch.optim.Optimizer):
    """The step above for all modules of an adapter.

    The groups are those of AdamW: all A and all B in the order of `pairs`, or all B alone. A
    group's rate is eta for its factors; `weight_decay` times it is the share of delta W that a step
    takes off.
    """

    def __init__(self, groups: list[dict], pairs: list[Pair], momentum: float, weight_decay: float):
        self.pairs = pairs
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        moves_a = len(self.param_groups) == 2
        # the direction of every factor first, of where all factors still are
        steps = [self._steps(group, moves_a) for group in self.param_groups]
        for group, moves in zip(self.param_groups, steps, strict=True):
            keep = max(1 - group["lr"] * group["weight_decay"], 0.0) ** (1 / len(steps))
            for p, move in zip(group["params"], moves, strict=True):
                p.mul_(keep).sub_(move, alpha=group["lr"])

    def _steps(self, group: dict, moves_a: bool) -> list[torch.Tensor]:
        """The step of each factor of a group at rate 1, downhill."""
        is_a = moves_a and group is self.param_groups[0]
        means = [self._mean(p, group["momentum"]) for p in group["params"]]
        partners = [b if is_a else a.T for a, b, _ in self.pairs]
        leasts = [self._step_of_b(a, scale) ** 2 * is_a for a, _, scale in self.pairs]
        found = directions([mean.T for mean in means] if is_a else means, partners, leasts)
        shares = [1 / (1 + (b != 0).any()) if moves_a else 1.0 for _, b, _ in self.pairs]
        return [
            (step.T if is_a else step) * (share / scale)
            for step, share, (_, _, scale) in zip(found, shares, self.pairs, strict=True)
        ]

    def _step_of_b(self, a: torch.Tensor, scale: float) -> torch.Tensor:
        """The size of a step of B: eta / scale by the root mean square singular value of A."""
        return self.param_groups[-1]["lr"] / scale / a.square().sum().div(len(a)).sqrt()

    def _mean(self, p: torch.Tensor, momentum: float) -> torch.Tensor:
        """The running mean of a factor's gradient, which has taken in the present one."""
        state = self.state[p]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(p)
        return state["mean"].lerp_(p.grad, 1 - momentum)
