"""Averages of a module's delta W over snapshots, computed from factors alone.

A snapshot is (A [k, d_in], B [d_out, k]); all have one scale, which is left out. The product B A
[d_out, d_in] is never formed.
"""

from __future__ import annotations

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
"""(A [k, d_in], B [d_out, k]) of a module."""


def average(method: str, snapshots: dict[int, Pair], rank: int) -> Pair:
    """The factors (A [rank, d_in], B [d_out, rank]), in fp32, of an average of snapshots.

    Given are PPO step -> snapshot.
    """
    pairs, times = [*snapshots.values()], [float(step) for step in snapshots]
    weights = mean_weights(len(pairs)) if method == "mean" else trajectory_weights(pairs, times)
    return weighted_sum(pairs, weights, rank)


def mean_weights(count: int) -> list[float]:
    """The same weight for each of `count` snapshots."""
    return [1 / count] * count


def trajectory_weights(snapshots: list[Pair], times: list[float]) -> list[float]:
    """Weights of the snapshots in the rank-1 trajectory at the last of `times`.

    The products, flattened and stacked [T, d_out d_in], are taken for their leading singular pair
    a D^T, a course along one direction D; a line is fitted to a by least squares, and what comes
    back is D times the line at the last time (arXiv 2605.21468; the authors' code, RELEX, also goes
    on beyond it). D is itself a sum of the snapshots: with a unit vector u that leads their Gram
    matrix [T, T], it is sum_t u_t delta W_t, up to its length, which cancels.
    """
    values, vectors = torch.linalg.eigh(gram(snapshots))
    leading = vectors[:, -1]
    if float(values[-1]) <= 0:  # nothing has moved
        return mean_weights(len(snapshots))
    return (line_at(times, leading.tolist(), times[-1]) * leading).tolist()


def gram(snapshots: list[Pair]) -> torch.Tensor:
    """Inner products [T, T] of the snapshots' products as vectors, in fp64, from their factors."""
    pairs = [(a.double(), b.double()) for a, b in snapshots]
    rows = [[((b.T @ d) * (a @ c.T)).sum() for c, d in pairs] for a, b in pairs]
    return torch.stack([torch.stack(row) for row in rows])


def line_at(times: list[float], values: list[float], time: float) -> float:
    """The least-squares line through (times, values), at `time`; their mean for one time."""
    t, y = (torch.tensor(column, dtype=torch.float64) for column in (times, values))
    spread = t - t.mean()
    slope = (spread @ y) / (spread @ spread) if len({*times}) > 1 else torch.zeros((), dtype=torch.float64)
    return float(y.mean() + slope * (time - t.mean()))


def weighted_sum(snapshots: list[Pair], weights: list[float], rank: int) -> Pair:
    """The best approximation of rank `rank` of a weighted sum of the snapshots' products.

    The sum is [w_1 B_1 ... w_T B_T] [A_1; ...; A_T]; its singular values are those of a small
    matrix, the product in orthonormal bases of both (by QR).
    """
    rows = torch.cat([a.double() for a, _ in snapshots])
    columns = torch.cat([w * b.double() for w, (_, b) in zip(weights, snapshots, strict=True)], dim=1)
    q_b, r_b = torch.linalg.qr(columns)
    q_a, r_a = torch.linalg.qr(rows.T)
    left, singular, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, len(singular))
    root_n = singular[:kept].sqrt()
    return _padded(root_n[:, None] * (right[:kept] @ q_a.T), q_b @ left[:, :kept] * root_n, rank)


def _padded(a_ki: torch.Tensor, b_ok: torch.Tensor, rank: int) -> Pair:
    """The factors in fp32, filled up with zeros to `rank`."""
    missing = rank - len(a_ki)
    a_ri = torch.nn.functional.pad(a_ki, (0, 0, 0, missing))
    b_or = torch.nn.functional.pad(b_ok, (0, missing))
    return a_ri.float().contiguous(), b_or.float().contiguous()
