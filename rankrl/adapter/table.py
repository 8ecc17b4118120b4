"""Where the rank goes: one row per adapted module, with its rank and alpha."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ModuleRank:
    """One adapted linear module; `alpha / rank` scales its update."""

    module: str
    d_in: int
    d_out: int
    rank: int
    alpha: float

    @property
    def params(self) -> int:
        return self.rank * (self.d_in + self.d_out)


def uniform(shapes: dict[str, tuple[int, int]], rank: int, alpha: Callable[[int], float]) -> list[ModuleRank]:
    """The same rank everywhere. `shapes`: module name -> (d_in, d_out)."""
    return [ModuleRank(name, d_in, d_out, rank, alpha(rank)) for name, (d_in, d_out) in shapes.items()]
