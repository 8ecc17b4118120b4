"""Sets of reals with exact ends: unions, intersections and differences of intervals and points."""

from __future__ import annotations

import math
from fractions import Fraction

from rankrl.reward.structure import Node
from rankrl.reward.tidy import squeezed
from rankrl.reward.units import quantity

INFINITE = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}
End = tuple[Fraction | float, int]
"""A cut of the real line: at a number, before it (-1) or after it (1)."""
Piece = tuple[End, End]
RealSet = tuple[Piece, ...]
"""Disjoint pieces in order, each from one cut to another; a point lies between two cuts."""
ALL: RealSet = (((-math.inf, 1), (math.inf, -1)),)


def real_set(node: Node) -> RealSet | None:
    """The set that a node means, or None if it has other ends than numbers and infinities."""
    if node.kind == "set":
        parts = [real_set(part) for part in node.parts]
        known = [part for part in parts if part is not None]
        return combined(node.mark, known) if len(known) == len(parts) else None
    if node.kind == "group" and len(node.parts) == 2:
        low, high = (_end(part) for part in node.parts)
        if low is None or high is None or not low < high:
            return None
        return (((low, 1 if node.mark[0] == "(" else -1), (high, -1 if node.mark[1] == ")" else 1)),)
    points = [_end(part) for part in (node.parts if node.kind == "list" else (node,))]
    if node.kind not in ("list", "leaf") or any(point is None or math.isinf(point) for point in points):
        return () if squeezed(node.text) == r"\emptyset" else None
    return united([((point, -1), (point, 1)) for point in points if point is not None])


def _end(node: Node) -> Fraction | float | None:
    infinite = INFINITE.get(squeezed(node.text))
    return quantity(node.text).exact if infinite is None else math.inf * infinite


def combined(operation: str, sets: list[RealSet]) -> RealSet:
    first, *others = sets
    for other in others:
        if operation == r"\cup":
            first = united([*first, *other])
        else:
            first = common(first, complement(other) if operation == r"\setminus" else other)
    return first


def united(pieces: list[Piece]) -> RealSet:
    done: list[Piece] = []
    for low, high in sorted(pieces):
        if done and low <= done[-1][1]:
            done[-1] = (done[-1][0], max(done[-1][1], high))
        else:
            done.append((low, high))
    return tuple(done)


def common(first: RealSet, second: RealSet) -> RealSet:
    pairs = [(max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second]
    return united([(low, high) for low, high in pairs if low < high])


def complement(pieces: RealSet) -> RealSet:
    cuts = [ALL[0][0], *(cut for piece in pieces for cut in piece), ALL[0][1]]
    return tuple((low, high) for low, high in zip(cuts[::2], cuts[1::2], strict=True) if low < high)
