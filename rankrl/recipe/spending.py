"""How a budget of parameters is spent on modules. No torch.

A rank in a module costs d_in + d_out; rank 0 drops the module. Methods use value per parameter
(density), so that a wide module must be worth its cost. Ties are broken by a hash of layer and
type: by name, the first layers would win every time.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from dataclasses import dataclass
from math import floor
from typing import TypeVar

from rankrl.recipe.rank_table import LARGEST_SERVED, Shapes

V = TypeVar("V")
Ranks = dict[str, int]
MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
CLOSE = 1e-9
"""Ranks that differ by less count as equal: they differ by rounding only."""


@dataclass(frozen=True)
class Space:
    """A budget of parameters, and by module the parameters per rank and the largest rank.

    `least` is the smallest rank of every module.
    """

    budget: int
    costs: dict[str, int]
    least: int
    most: dict[str, int]

    def spent(self, ranks: dict[str, int] | dict[str, float]) -> float:
        """Number of parameters that the ranks cost."""
        return sum(rank * self.costs[name] for name, rank in ranks.items())


def space(shapes: Shapes, budget: int, least: int = 0, most: int = LARGEST_SERVED) -> Space:
    """The budget and the limits of modules with these shapes.

    Raises ValueError if the budget does not hold one rank of any module, or the least rank of all.
    """
    costs = {name: d_in + d_out for name, (d_in, d_out) in shapes.items()}
    limits = {name: min(most, LARGEST_SERVED, *shape) for name, shape in shapes.items()}
    needed = max(min(costs.values()), least * sum(costs.values()))
    if budget < needed:
        what = f"rank {least} in every module" if least else "rank 1 in the cheapest module"
        raise ValueError(f"allocation: got a budget of {budget:,} parameters, allowed: at least {needed:,} ({what})")
    return Space(budget, costs, least, limits)


def layer_and_type(name: str) -> tuple[int, str]:
    """(layer, type) of a module: the first number in its name, and its last part.

    For instance, model.layers.3.mlp.up_proj gives (3, up_proj).
    """
    parts = name.split(".")
    return next((int(part) for part in parts if part.isdigit()), 0), parts[-1]


def tie(name: str) -> str:
    """The key that breaks ties between modules.

    It does not depend on what comes before the layer in a model's names.
    """
    return hashlib.sha256("{}.{}".format(*layer_and_type(name)).encode()).hexdigest()


def proportional(densities: dict[str, float], where: Space) -> Ranks:
    """Ranks in proportion to `densities`, within the limits.

    Modules of density 0 get the least rank. The common factor is found by bisection, because limits
    make the cost piecewise linear in it. Raises ValueError if all densities are 0.
    """

    def targets(factor: float) -> dict[str, float]:
        return {name: min(max(factor * d, where.least), where.most[name]) for name, d in densities.items()}

    positive = [d for d in densities.values() if d > 0]
    if not positive:
        raise ValueError("allocation: got importance 0 in every module, allowed: some above 0")
    low, high = 0.0, max(where.most.values()) / min(positive)
    if where.spent(targets(high)) <= where.budget:
        return rounded(targets(high), where)
    plain = where.budget / sum(d * where.costs[name] for name, d in densities.items())
    if all(plain * d == target for d, target in zip(densities.values(), targets(plain).values(), strict=True)):
        return rounded(targets(plain), where)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if where.spent(targets(middle)) <= where.budget else (low, middle)
    return rounded(targets(low), where)


def rounded(targets: dict[str, float], where: Space) -> Ranks:
    """Whole ranks from `targets`, within the budget.

    They are rounded down; then those that lost the largest part of a rank get one more, as long as
    the budget holds it.
    """
    ranks = {name: floor(target + CLOSE) for name, target in targets.items()}
    left = where.budget - where.spent(ranks)
    waiting = [name for name, target in targets.items() if target > CLOSE and ranks[name] < where.most[name]]
    for name in sorted(waiting, key=lambda name: (round(ranks[name] - targets[name], 9), tie(name))):
        if where.costs[name] <= left:
            ranks[name] += 1
            left -= where.costs[name]
    return ranks


def greedy(densities: dict[str, list[float]], where: Space) -> Ranks:
    """Ranks, given direction by direction: most value per parameter first, then what still fits.

    `densities`: module -> value per parameter of its 1st, 2nd, ... direction, non-increasing. The
    loss against the optimum is at most the value of the first direction that did not fit.
    Directions of value 0 come last, one rank in every module at a time.
    """
    ranks = dict.fromkeys(where.costs, where.least)
    left = where.budget - where.spent(ranks)
    heap: list[tuple[float, int, str, str]] = []

    def offer(name: str, i: int) -> None:
        if i < min(len(densities[name]), where.most[name]):
            heapq.heappush(heap, (-densities[name][i], i, tie(name), name))

    for name in where.costs:
        offer(name, where.least)
    while heap:
        _, i, _, name = heapq.heappop(heap)
        if where.costs[name] <= left:  # else none of its later directions fits either
            ranks[name] += 1
            left -= where.costs[name]
            offer(name, i + 1)
    return ranks


def shrunk(ranks: Ranks, tau: float, where: Space) -> Ranks:
    """A mix of a proposal (share `tau`) and the uniform allocation of the same budget (the rest).

    A `tau` of 1 gives the proposal itself.
    """
    if tau == 1:
        return ranks
    level = where.budget / sum(where.costs.values())
    return rounded({n: min((1 - tau) * level + tau * rank, where.most[n]) for n, rank in ranks.items()}, where)


def permuted(values: dict[str, V], seed: int) -> dict[str, V]:
    """The same values, dealt to the modules at random by `seed`."""
    names = sorted(values)
    dealt = random.Random(seed).sample(names, len(names))
    return {name: values[other] for name, other in zip(names, dealt, strict=True)}


def mirrored(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """The same values in reverse order of their sums.

    The module with the largest sum gets the values of the one with the smallest.
    """
    names = sorted(values, key=lambda name: (sum(values[name]), tie(name)))
    return {name: values[other] for name, other in zip(names, reversed(names), strict=True)}


def linear(depth: float, slope: float) -> float:
    """Weight of a layer that changes linearly with depth; the mean is 1.

    `depth` runs from just above 0 (first layer) to just below 1. With `slope` > 0 deeper layers
    weigh more.
    """
    return 1 + slope * (2 * depth - 1)


def triangular(depth: float, peak: float) -> float:
    """Weight 1 at depth `peak`, falling to 0 at both ends, which no layer reaches."""
    return depth / peak if depth <= peak else (1 - depth) / (1 - peak)
