"""Starts that are computed from the base's weights, one module at a time.

Under ZeRO-3 a worker holds a shard of each weight until the weight is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from rankrl.adapter.start import Start
from rankrl.recipe.init_section import REWRITING


def whole_weights(linears: dict[str, nn.Linear]) -> Iterator[tuple[str, torch.Tensor]]:
    """(module, W [d_out, d_in] in fp32), each gathered while it is in use.

    All workers must iterate together.
    """
    import deepspeed  # here: the driver needs this file, and not DeepSpeed

    for module, linear in linears.items():
        with deepspeed.zero.GatheredParameters([linear.weight], enabled=hasattr(linear.weight, "ds_id")):
            yield module, linear.weight.detach().float()


def right_singular(weight: torch.Tensor, count: int, bottom: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(right singular vectors [count, d_in], singular values [count]) of W [d_out, d_in].

    The largest come first, or with `bottom` the smallest first. They are among the min(d_out, d_in)
    of the thin SVD: a wide W's null space is not, and RLMO takes none of it. They are computed from
    the eigenvectors of the smaller Gram matrix in fp64, which is faster than an SVD. The entry of
    largest magnitude in each row is positive.
    """
    w = weight.double()
    wide = w.shape[0] < w.shape[1]
    squares, vectors = torch.linalg.eigh(w @ w.T if wide else w.T @ w)
    order = torch.arange(len(squares), device=w.device)  # eigh's eigenvalues ascend
    order = order[:count] if bottom else order.flip(0)[:count]
    rows = vectors[:, order].T @ w if wide else vectors[:, order].T
    rows = nn.functional.normalize(rows, dim=1)
    sign = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    return (rows * sign).float(), squares[order].clamp(min=0).sqrt().float()


def rewriting_factors(weight: torch.Tensor, rank: int, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, d_in], B [d_out, rank]) of PEFT's own `pissa` or `olora`, at scale 1.

    PEFT subtracts B A from the weight that it is given, so it is given a copy.
    """
    d_out, d_in = weight.shape
    copy = nn.Linear(d_in, d_out, bias=False, device=weight.device)
    copy.weight.data.copy_(weight)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=method)
    layer = Linear(copy, "start", config, r=rank, lora_alpha=rank)
    return layer.lora_A["start"].weight.detach(), layer.lora_B["start"].weight.detach()


def tail_factors(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, d_in], B [d_out, rank]): the bottom right and left singular vectors of W.

    The rows are those of rlmo. A left vector is W v / |W v|, in fp64; singular values are left out,
    so B A is no part of W.
    """
    rows, _ = right_singular(weight, rank, bottom=True)
    columns = nn.functional.normalize(weight.double() @ rows.double().T, dim=0)
    return rows, columns.float()


def principal_rows(linears: dict[str, nn.Linear], count: int) -> dict[str, torch.Tensor]:
    """Module -> the top right singular vectors [count, d_in] of its W, or as many as it has."""
    return {m: right_singular(weight, min(count, *weight.shape))[0] for m, weight in whole_weights(linears)}


def start_from_weights(linears: dict[str, nn.Linear], method: str, rank: int) -> Start:
    """A start by one of `FROM_WEIGHTS`, for adapters of up to `rank`."""
    start = Start({})
    for module, weight in whole_weights(linears):
        most = min(rank, *weight.shape)
        if method in REWRITING:
            tail = method == "olora_tail"
            a, b = tail_factors(weight, most) if tail else rewriting_factors(weight, most, method)
            start.columns[module] = b.cpu().contiguous()
            start.diagnostics[module] = {"share_of_weight": float((b @ a).square().sum() / weight.square().sum())}
        else:
            a, singular = right_singular(weight, most, method == "rlmo")
            start.diagnostics[module] = {"share_of_weight": float(singular.square().sum() / weight.square().sum())}
        start.rows[module] = a.cpu().contiguous()
    return start
