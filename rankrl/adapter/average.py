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
    pairs = [*snapshots.values()]
    if method == "mean":
        return mean_update(pairs, rank)
    return trajectory_update(pairs, [float(step) for step in snapshots], rank)


def mean_update(snapshots: list[Pair], rank: int) -> Pair:
    """The best approximation of rank `rank` of the mean of the snapshots' products."""
    left_on, singular_n, right_ni = _decomposed(snapshots)
    kept = min(rank, len(singular_n))
    root_n = (singular_n[:kept] / len(snapshots)).sqrt()
    return _padded(root_n[:, None] * right_ni[:kept], left_on[:, :kept] * root_n, rank)


def trajectory_update(snapshots: list[Pair], times: list[float], rank: int) -> Pair:
    """The rank-1 trajectory of the snapshots, at the last of `times`.

    delta W_t is taken for a_t u v^T (arXiv 2605.21468), with u, v the leading singular vectors of
    the mean, a_t = u^T delta W_t v, and a line fitted to a_t by least squares. What comes back is
    u v^T times the line at the last time, as factors that are 0 beyond the first rank.
    """
    left_on, _, right_ni = _decomposed(snapshots)
    u_o, v_i = left_on[:, 0], right_ni[0]
    along = [float((u_o @ b.double()) @ (a.double() @ v_i)) for a, b in snapshots]
    last = line_at(times, along, times[-1])
    return _padded(v_i[None], (last * u_o)[:, None], rank)


def line_at(times: list[float], values: list[float], time: float) -> float:
    """The least-squares line through (times, values), at `time`; their mean for one time."""
    t, y = (torch.tensor(column, dtype=torch.float64) for column in (times, values))
    spread = t - t.mean()
    slope = (spread @ y) / (spread @ spread) if len({*times}) > 1 else torch.zeros((), dtype=torch.float64)
    return float(y.mean() + slope * (time - t.mean()))


def _decomposed(snapshots: list[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [d_out, n], S [n] and V^T [n, d_in] of the sum of the snapshots' products, in fp64.

    The sum is [B_1 ... B_m] [A_1; ...; A_m]; its singular values are those of a small matrix, the
    product in orthonormal bases of both (by QR).
    """
    rows = torch.cat([a.double() for a, _ in snapshots])
    columns = torch.cat([b.double() for _, b in snapshots], dim=1)
    q_b, r_b = torch.linalg.qr(columns)
    q_a, r_a = torch.linalg.qr(rows.T)
    left, singular, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ left, singular, right @ q_a.T


def _padded(a_ki: torch.Tensor, b_ok: torch.Tensor, rank: int) -> Pair:
    """The factors in fp32, filled up with zeros to `rank`."""
    missing = rank - len(a_ki)
    a_ri = torch.nn.functional.pad(a_ki, (0, 0, 0, missing))
    b_or = torch.nn.functional.pad(b_ok, (0, missing))
    return a_ri.float().contiguous(), b_or.float().contiguous()
