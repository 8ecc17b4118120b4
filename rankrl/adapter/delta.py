"""How far an adapter has moved its base, computed from its factors A and B alone.

The product delta W = scale B A [d_out, d_in] is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

Factors = tuple[torch.Tensor, torch.Tensor, float]
"""(A [r, d_in], B [d_out, r], scale) of a module."""


def singular_values(a_ri: torch.Tensor, b_or: torch.Tensor, scale: float) -> torch.Tensor:
    """The singular values [min(r, d_in, d_out)] of scale B A, largest first.

    They are those of a matrix of at most r x r: B A in orthonormal bases of B and A^T (by QR).
    """
    r_a = torch.linalg.qr(a_ri.double().T, mode="r").R
    r_b = torch.linalg.qr(b_or.double(), mode="r").R
    return torch.linalg.svdvals(scale * r_b @ r_a.T)


def effective_rank(singular: torch.Tensor) -> float:
    """The exponential of the entropy of the singular values as shares of their sum; 0 if all are 0.

    Roy and Vetterli 2007.
    """
    total = float(singular.sum())
    if total == 0:
        return 0.0
    shares = singular / total
    return float(torch.special.entr(shares).sum().exp())


def squared_norm(a_ri: torch.Tensor, b_or: torch.Tensor, scale: float) -> torch.Tensor:
    """The squared Frobenius norm of scale B A, from the Gram matrices of B and A^T [r, r].

    It is much cheaper than singular values, and in double precision as good for a norm.
    """
    a_ri, b_or = a_ri.double(), b_or.double()
    return scale**2 * ((b_or.T @ b_or) * (a_ri @ a_ri.T)).sum()


@torch.no_grad()
def delta_norm(update: dict[str, Factors]) -> float:
    """The Frobenius norm of delta W over all modules."""
    squares = [squared_norm(*factors) for factors in update.values()]
    return float(torch.stack(squares).sum().clamp(min=0).sqrt())


def module_size(a_ri: torch.Tensor, b_or: torch.Tensor, scale: float) -> dict[str, float]:
    """`delta_norm`, the Frobenius norm of a module's delta W, and its `effective_rank`."""
    singular = singular_values(a_ri, b_or, scale)
    return {"delta_norm": float(singular.norm()), "effective_rank": effective_rank(singular)}


def norm_of(sizes: Iterable[dict[str, float]]) -> float:
    """The Frobenius norm of delta W over several modules, from the `module_size` of each."""
    return sum(size["delta_norm"] ** 2 for size in sizes) ** 0.5


def scalars(sizes: dict[str, dict[str, float]]) -> dict[str, float]:
    """The scalars that TensorBoard shows, from the `module_size` of each module.

    The norm of delta W over all modules and over each type of module, and the mean effective rank.
    """
    kinds = sorted({module.rpartition(".")[2] for module in sizes})
    by_kind = {kind: norm_of(size for module, size in sizes.items() if module.endswith(f".{kind}")) for kind in kinds}
    return {
        "delta_norm": norm_of(sizes.values()),
        **{f"delta_norm_{kind}": norm for kind, norm in by_kind.items()},
        "effective_rank": sum(size["effective_rank"] for size in sizes.values()) / len(sizes),
    }
