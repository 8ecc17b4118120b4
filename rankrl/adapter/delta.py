"""How far an adapter has moved its base, from its factors alone: delta W = scale B A is never formed."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def singular_values(a_ri: torch.Tensor, b_or: torch.Tensor, scale: float) -> torch.Tensor:
    """[min(r, d_in, d_out)] of scale B A: those of a core of at most r x r, between orthonormal bases of A^T and B."""
    r_a = torch.linalg.qr(a_ri.double().T, mode="r").R
    r_b = torch.linalg.qr(b_or.double(), mode="r").R
    return torch.linalg.svdvals(scale * r_b @ r_a.T)


def effective_rank(singular: torch.Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007); 0 where all are 0."""
    total = float(singular.sum())
    if total == 0:
        return 0.0
    shares = singular / total
    return float(torch.special.entr(shares).sum().exp())


def module_size(a_ri: torch.Tensor, b_or: torch.Tensor, scale: float) -> dict[str, float]:
    singular = singular_values(a_ri, b_or, scale)
    return {"delta_norm": float(singular.norm()), "effective_rank": effective_rank(singular)}


def norm_of(sizes: Iterable[dict[str, float]]) -> float:
    """Frobenius norm over several modules."""
    return sum(size["delta_norm"] ** 2 for size in sizes) ** 0.5


def scalars(sizes: dict[str, dict[str, float]]) -> dict[str, float]:
    """For TensorBoard: the norm of delta W in all and by type of module, and the mean effective rank."""
    kinds = sorted({module.rpartition(".")[2] for module in sizes})
    by_kind = {kind: norm_of(size for module, size in sizes.items() if module.endswith(f".{kind}")) for kind in kinds}
    return {
        "delta_norm": norm_of(sizes.values()),
        **{f"delta_norm_{kind}": norm for kind, norm in by_kind.items()},
        "effective_rank": sum(size["effective_rank"] for size in sizes.values()) / len(sizes),
    }
