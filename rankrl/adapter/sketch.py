"""Randomised linear algebra on matrices that are never formed, and tests of what it finds.

The matrices are sums over tokens. All functions are pure functions of tensors. Axes: d dimensions
of a module's input or output, k columns of a sketch, N samples, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankrl.adapter.factors import generator

PERMUTATIONS = 400
LEVEL = 0.05
"""Probability that a module whose gradient is only noise keeps any direction."""


def random_basis(seed: int, module: str, side: str, d: int, k: int) -> torch.Tensor:
    """Orthonormal columns [d, k] of a random subspace drawn from (seed, module, side)."""
    return orthonormal(torch.randn(d, k, generator=generator(seed, module, side)))


def orthonormal(y_dk: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis [d, k] of the given columns, computed in fp64, returned in fp32."""
    return torch.linalg.qr(y_dk.double()).Q.float()


def nystrom(y_dk: torch.Tensor, omega_dk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(eigenvectors V [d, k], eigenvalues [k], largest first) of a positive semidefinite C.

    They are computed from Omega and Y = C Omega alone.

    Fixed-rank Nystrom approximation with a shift: algorithm 3 of Tropp et al. 2017 (arXiv
    1706.05736).
    """
    y, omega = y_dk.double(), omega_dk.double()
    shift = torch.finfo(torch.float32).eps * y.norm() + torch.finfo(torch.float64).tiny
    y = y + shift * omega
    core = omega.T @ y
    root = torch.linalg.cholesky((core + core.T) / 2)
    v, singular, _ = torch.linalg.svd(torch.linalg.solve_triangular(root, y.T, upper=False).T, full_matrices=False)
    return v.float(), (singular.square() - shift).clamp(min=0).float()


@dataclass(frozen=True)
class LowRankMap:
    """The symmetric map x -> rest * x + basis ((gains - rest) * basis^T x) of x [.., d], in O(d k).

    It multiplies x along column i of `basis_dk` by gain i, and everything else by `rest`.
    """

    basis_dk: torch.Tensor
    gains_k: torch.Tensor
    rest: float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest * x + (x @ self.basis_dk * (self.gains_k - self.rest)) @ self.basis_dk.T


def off(rows_Kd: torch.Tensor) -> LowRankMap:
    """The projection that removes the components along orthonormal rows [K, d]."""
    return LowRankMap(rows_Kd.T, rows_Kd.new_zeros(len(rows_Kd)))


def whitening(v_dk: torch.Tensor, eigenvalues_k: torch.Tensor, trace: float) -> LowRankMap:
    """C^(-1/2) of a second moment C, from its leading eigenvectors [d, k], eigenvalues, and trace.

    What the k eigenvalues leave of the trace is taken as evenly spread over the other directions.
    """
    d, k = v_dk.shape
    left = (trace - float(eigenvalues_k.sum())) / max(d - k, 1)
    floor = max(left, 1e-3 * trace / d) or 1.0  # K-FAC's damping; a module that sees only zeros is left alone
    return LowRankMap(v_dk, (eigenvalues_k + floor).rsqrt(), floor**-0.5)


def through(maps: list[LowRankMap], x: torch.Tensor) -> torch.Tensor:
    """The result [.., d] of applying all `maps` to x [.., d], the first map first."""
    for apply in maps:
        x = apply(x)
    return x


def directions(q_dk: torch.Tensor, z_ki: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(U [d_out, k], singular values [k], V [d_in, k]) of Q Q^T G.

    They come from an orthonormal Q [d_out, k] and Z = Q^T G [k, d_in].
    """
    u, singular, vt = torch.linalg.svd(z_ki.double(), full_matrices=False)
    return q_dk @ u.float(), singular.float(), vt.T.float()


def permuted(advantage_N: torch.Tensor, group_N: torch.Tensor, permutations: int, seed: int) -> torch.Tensor:
    """The advantages [P, N], shuffled within their groups in P independent ways."""
    keys_PN = torch.rand(permutations, len(group_N), generator=generator(seed, "permutations")).double()
    shuffled = (group_N.double() + keys_PN).argsort(dim=1)  # groups stay together, each in random order
    together = group_N.argsort(stable=True)
    result = torch.empty(permutations, len(group_N), dtype=advantage_N.dtype)
    result[:, together] = advantage_N[shuffled]
    return result


def reproducible(
    contribution_Nk: torch.Tensor, advantage_N: torch.Tensor, null_PN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(held-out signal [k], is it beyond chance [k]) of k directions found on other samples.

    Row n of `contribution_Nk` holds u_i^T g_n v_i, with g_n the gradient of sample n's
    log-probability. `null_PN`: the shuffled advantages. One null distribution serves all k
    directions: the largest of their standardised signals under each permutation. So trying many
    directions does not make chance findings more likely.
    """
    c = contribution_Nk.double()
    signal_k, null_Pk = advantage_N.double() @ c, null_PN.double() @ c
    spread_k = null_Pk.std(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    threshold = (null_Pk / spread_k).amax(dim=1).quantile(1 - LEVEL)
    return signal_k.float(), signal_k / spread_k > threshold


def overlap(rows_Nd: torch.Tensor, others_Md: torch.Tensor) -> float:
    """The mean squared cosine between rows [N, d] and the span of the others [M, d].

    Both are orthonormal. By chance it is M / d.
    """
    return float((rows_Nd @ others_Md.T).square().sum() / max(len(rows_Nd), 1))
