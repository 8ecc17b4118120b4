"""The factors that an adapter starts from: A drawn from the seed or measured, with matched norms.

Rows are fp32 and nested: the A of rank r is the first r rows of the A of any higher rank, so all
ranks of one seed share their start.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch.nn.functional import normalize

from rankrl.adapter.start import Start
from rankrl.recipe.init_section import DRAWN, REWRITING, Init
from rankrl.recipe.rank_table import ModuleRank

KAIMING_NORM = 1 / math.sqrt(3)
"""Root mean square norm of a row drawn from U(-1/sqrt(d_in), 1/sqrt(d_in)), for any d_in."""
Factors = dict[str, torch.Tensor]
"""Module -> A [rank, d_in], or module -> B [d_out, rank]."""


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with a hash of `parts`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def kaiming_rows(seed: int, module: str, rank: int, d_in: int) -> torch.Tensor:
    """A [rank, d_in] drawn from U(-1/sqrt(d_in), 1/sqrt(d_in)), PEFT's default.

    Unlike PEFT's, row i depends on (seed, module, i) alone.
    """
    rows = [torch.rand(d_in, generator=generator(seed, module, i)) for i in range(rank)]
    return (2 * torch.stack(rows) - 1) / math.sqrt(d_in)


def gram_schmidt(rows_Nd: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows [N, d], fp32: the first i span the same subspace as the first i given rows.

    They also depend on those alone. Rows are processed one by one, so that N changes no bit of a
    row; a blocked QR does not guarantee this. Each row is orthogonalised twice, which is enough
    (Giraud et al. 2005).
    """
    basis_Nd = torch.zeros_like(rows_Nd, dtype=torch.float64)
    for i, row in enumerate(rows_Nd.double()):
        for _ in range(2):
            row = row - (basis_Nd[:i] @ row) @ basis_Nd[:i]
            row = row / row.norm()
        basis_Nd[i] = row
    return basis_Nd.float()


def orthonormal_rows(seed: int, module: str, rank: int, d_in: int) -> torch.Tensor:
    """A [rank, d_in]: the `kaiming_rows`, made orthonormal.

    It works at any rank; PEFT's `orthogonal` needs an even one.
    """
    return gram_schmidt(kaiming_rows(seed, module, rank, d_in))


def etf_rows(seed: int, module: str, rank: int, d_in: int) -> torch.Tensor:
    """A [rank, d_in]: orthonormal rows whose columns come near an equiangular tight frame.

    An equiangular tight frame of R^rank is d_in real vectors with equal norms and equal angles. It
    exists only if d_in <= rank (rank + 1) / 2, and even then not in most dimensions; and frames of
    two ranks share no rows. What is built instead, so that ranks nest, is a real harmonic frame:
    rows are cos and sin of distinct random frequencies, columns are in random order with random
    signs. It is tight at every rank. Its columns have equal norms at every even rank up to
    d_in - 2. Their angles are those of random characters; nothing more is guaranteed.
    """
    draw = generator(seed, module, "etf")
    place_d, sign_d = torch.randperm(d_in, generator=draw), 2 * torch.randint(2, (d_in,), generator=draw) - 1
    frequency_F = 1 + torch.randperm((d_in - 1) // 2, generator=draw)[: (rank + 1) // 2]
    angle_Fd = 2 * math.pi * (frequency_F[:, None] * place_d % d_in).double() / d_in
    pairs = torch.stack([angle_Fd.cos(), angle_Fd.sin()], dim=1).flatten(0, 1) * math.sqrt(2 / d_in)
    constant = torch.ones(1, d_in, dtype=torch.float64) / math.sqrt(d_in)
    last = constant * (1 - 2 * (place_d % 2)) if d_in % 2 == 0 else constant[:0]
    return (torch.cat([pairs, constant, last])[:rank] * sign_d).float()


DRAW = {"kaiming": kaiming_rows, "orthonormal": orthonormal_rows, "etf": etf_rows}


def completed(
    basis_Nd: torch.Tensor, seed: int, module: str, rank: int, fallback: str, avoid_Kd: torch.Tensor
) -> torch.Tensor:
    """Orthonormal rows [rank, d]: first those of `basis_Nd`, then rows drawn as `fallback` says.

    The drawn rows are made orthogonal to those before them and to `avoid_Kd`.
    """
    drawn = DRAW[fallback](seed, module, rank, basis_Nd.shape[1])
    rows = torch.cat([avoid_Kd.cpu(), basis_Nd.cpu(), drawn])[: len(avoid_Kd) + rank]
    return gram_schmidt(rows)[len(avoid_Kd) :]


def starting_factors(init: Init, seed: int, table: list[ModuleRank], start: Start | None) -> tuple[Factors, Factors]:
    """(A of every module, B of every module whose B does not start at 0).

    Methods that are not drawn from the seed take their factors from `start`. Raises ValueError if
    it is missing then, or has too few rows for a module.
    """
    rows: Factors = {}
    columns: Factors = {}
    for row in table:
        drawn = init.method in DRAWN
        a = DRAW[init.method](seed, row.module, row.rank, row.d_in) if drawn else _measured(init, start, row)
        if init.method in REWRITING:
            assert start is not None
            b = start.columns[row.module][:, : row.rank]
            # PEFT divides PiSSA's singular values by its scale
            shrink = math.sqrt(row.alpha / row.rank) if init.method == "pissa" else 1.0
            norms = a.norm(dim=1) / KAIMING_NORM if init.norm == "kaiming" else torch.full((row.rank,), shrink)
            rows[row.module], columns[row.module] = a / norms[:, None], b * (norms / shrink**2)
        else:
            matched = init.method != "kaiming" and init.norm == "kaiming"
            rows[row.module] = normalize(a, dim=1) * KAIMING_NORM if matched else a
    return rows, columns


def _measured(init: Init, start: Start | None, row: ModuleRank) -> torch.Tensor:
    held = 0 if start is None else len(start.rows[row.module])
    if start is None or held < row.rank:
        raise ValueError(
            f"init.method: got {init.method!r} with {held} rows for {row.module}, which has rank {row.rank}"
        )
    return start.rows[row.module][: row.rank]
