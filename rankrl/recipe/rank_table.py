"""The rank table: one row per adapted module, with its rank and alpha; as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WEIGHT_BYTES = 4  # adapters are trained and stored in fp32
SERVING_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM 0.29 config/lora.py MaxLoRARanks
LARGEST_SERVED = SERVING_RANKS[-1]
Shapes = dict[str, tuple[int, int]]
"""Module name -> (d_in, d_out) of every module that may be adapted."""


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

    @property
    def b_params(self) -> int:
        """Parameters of B."""
        return self.rank * self.d_out


def uniform(shapes: Shapes, rank: int, alpha: Callable[[int], float]) -> list[ModuleRank]:
    """A table with the same rank everywhere; `alpha` gives alpha from the rank."""
    return rows(shapes, dict.fromkeys(shapes, rank), alpha)


def rows(shapes: Shapes, ranks: dict[str, int], alpha: Callable[[int], float]) -> list[ModuleRank]:
    """A row per module of rank 1 or more, in the order of `shapes`.

    `alpha` gives a module's alpha from its own rank.
    """
    return [
        ModuleRank(name, *shape, ranks[name], alpha(ranks[name])) for name, shape in shapes.items() if ranks[name] > 0
    ]


def params(table: list[ModuleRank]) -> int:
    return sum(row.params for row in table)


def trained_params(table: list[ModuleRank], trained: str) -> int:
    """Parameters that are trained: of `both` factors, or of `b` alone."""
    return sum(row.params if trained == "both" else row.b_params for row in table)


def document(table: list[ModuleRank], shapes: Shapes, method: str, budget: int) -> dict[str, Any]:
    """The content of allocation.json; `budget` is in parameters.

    A module that is left out has a row of rank 0.
    """
    by_module = {row.module: row for row in table}
    every = [by_module.get(name) or ModuleRank(name, *shape, 0, 0.0) for name, shape in shapes.items()]
    modules = [{**asdict(row), "params": row.params} for row in every]
    return {"method": method, "budget": budget, "spent": params(table), "modules": modules}


def span(content: dict[str, Any]) -> str:
    """The ranks of a document as text, such as `8` or `0 to 5, by module`."""
    ranks = [row["rank"] for row in content["modules"]]
    return str(ranks[0]) if len({*ranks}) == 1 else f"{min(ranks)} to {max(ranks)}, by module"


def as_json(content: dict[str, Any]) -> str:
    """A document as JSON text, one module per line."""
    modules = ",\n".join(f"  {json.dumps(row)}" for row in content["modules"])
    head = json.dumps({key: value for key, value in content.items() if key != "modules"}, indent=1)
    return f'{head[:-2]},\n "modules": [\n{modules}\n ]\n}}\n'


def from_plain(plain: list[dict[str, Any]]) -> list[ModuleRank]:
    """Rows from plain dicts. Other keys, and modules of rank 0, are ignored."""
    return [ModuleRank(**{key: row[key] for key in ModuleRank.__dataclass_fields__}) for row in plain if row["rank"]]


def read_table(path: Path) -> list[ModuleRank]:
    """The adapted modules in an allocation.json."""
    return from_plain(json.loads(path.read_text())["modules"])


def serving_rank(rank: int) -> int:
    """The smallest rank that vLLM serves and that holds `rank`.

    Raises ValueError above the largest.
    """
    fitting = [r for r in SERVING_RANKS if r >= rank]
    if not fitting:
        raise ValueError(f"ranks: got {rank}, allowed: at most {SERVING_RANKS[-1]}, the largest rank that vLLM serves")
    return fitting[0]
