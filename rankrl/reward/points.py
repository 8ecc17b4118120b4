"""Values of an expression at fixed points: residues where it is rational, else floats.

Residues decide: rational functions that agree there are the same. Floating-point values can only
refute: expressions that differ there are different; those that agree need algebra.
"""

from __future__ import annotations

import cmath
import re
from dataclasses import dataclass
from functools import lru_cache

from rankrl.reward.expression import COUNTED_POINTS, Expression
from rankrl.reward.grammar import CONSTANTS, LETTERS, WIDE, tokens
from rankrl.reward.value import PRIME, Unreadable, Value

POINTS = 3
ENOUGH = 5
"""How many of the points of whole numbers must give a value: k! has none below 0."""
TOLERANCE = 1e-8
SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\\?[A-Za-z]+)")
RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
COMMON = frozenset(["for", "and", "the", "are", "not", "all", "any", "when", "then", "with", "where", "otherwise"])
PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|[Nn][Oo])(?![A-Za-z])")


@dataclass(frozen=True)
class Estimate:
    """The values of an expression at its points: None where it has none.

    `exact` if all have residues. `large` and `opaque` are those of Expression.
    """

    values: tuple[Value | None, ...]
    exact: bool
    large: bool
    opaque: bool


def letters_of(text: str) -> set[str]:
    return {letter for run in RUN.findall(SUBSCRIPT.sub("", text)) for letter in run}


def prose(text: str, other: str = "") -> bool:
    """Whether three letters in a row are a word, not a product.

    They are a product if the other text has those letters, too.
    """
    runs = PROSE.findall(SUBSCRIPT.sub("", text))
    if any(run.lower() in COMMON for run in runs):
        return True
    return bool(runs) and not {letter for run in runs for letter in run} <= letters_of(other)


@lru_cache(maxsize=8192)
def counted(text: str) -> frozenset[str]:
    """The letters in exponents, factorials and binomials: they stand for whole numbers.

    WIDE is among them where there are floors.
    """
    steps = frozenset({WIDE}) if "floor" in text or "ceil" in text else frozenset()
    if "!" not in text and "binom" not in text and not re.search(r"\^\{?[^{}]*[A-Za-z]", text):
        return steps
    try:
        found = tokens(text)
    except Unreadable:
        return steps
    names: set[str] = set()
    for at, token in enumerate(found):
        if token == "^" and found[at - 1 : at] != ["e"]:
            names |= _names(_group_after(found, at + 1))
        elif token == "!":
            names |= _names(_group_after([*reversed(found[:at])], 0))
        elif token == r"\binom":
            top = _group_after(found, at + 1)
            names |= _names(top + _group_after(found, at + 1 + len(top)))
    return steps | names


def _group_after(found: list[str], at: int) -> list[str]:
    """The token at `at`, or all tokens of the group that it opens (or closes, read backwards)."""
    depth = 0
    for end in range(at, len(found)):
        depth += (found[end] in "([{") - (found[end] in ")]}")
        if depth == 0:
            return found[at : end + 1]
    return []


def _names(found: list[str]) -> set[str]:
    return {t for t in found if (t in LETTERS or (len(t) == 1 and t.isalpha())) and t not in CONSTANTS}


@lru_cache(maxsize=8192)
def estimate(text: str, whole: frozenset[str] = frozenset()) -> Estimate | None:
    """The values of an expression, with whole numbers for the letters in `whole`.

    None if the text is not an expression of bounded size with values at enough points.
    """
    try:
        found = tokens(text)
    except Unreadable:
        return None
    points = [Expression(found, point, whole) for point in range(COUNTED_POINTS if whole else POINTS)]
    values = tuple(_value(point) for point in points)
    known = [value for value in values if value]
    if len(known) < (ENOUGH if whole else POINTS):
        return None
    exact = all(value.residue is not None for value in known)
    return Estimate(values, exact, any(p.large for p in points), any(p.opaque for p in points))


def _value(point: Expression) -> Value | None:
    try:
        return point.value()
    except (Unreadable, ArithmeticError, ValueError):
        return None


def estimates(given: str, gold: str) -> tuple[Estimate | None, Estimate | None]:
    """Both expressions at the same points."""
    whole = counted(given) | counted(gold)
    return (
        None if prose(given, gold) else estimate(given, whole),
        None if prose(gold, given) else estimate(gold, whole),
    )


def together(given: Estimate, gold: Estimate) -> list[tuple[Value, Value]]:
    """The values at the points where both have one; none if those are too few."""
    pairs = [(a, b) for a, b in zip(given.values, gold.values, strict=True) if a and b]
    return pairs if len(pairs) >= min(ENOUGH, len(given.values)) else []


def close(a: complex, b: complex) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-12


def agree(given: Estimate, gold: Estimate) -> bool | None:
    """Whether the expressions are equal; None where this cannot tell."""
    pairs = together(given, gold)
    if given.exact and gold.exact and pairs:
        same = all(a.residue == b.residue for a, b in pairs)
        if same or not (given.opaque or gold.opaque):
            return same
    return None if pairs and all(close(a.near, b.near) for a, b in pairs) else False


def constant(estimated: Estimate) -> bool:
    """Whether an expression has the same value at all points: it has no letters."""
    known = [value for value in estimated.values if value]
    return all(value.near == known[0].near for value in known)


def factor(given: Estimate, gold: Estimate) -> tuple[float, bool] | None:
    """(the constant real factor between two expressions, whether it is certain).

    None if there is no such factor, or if one of them is 0 at a point.
    """
    pairs = together(given, gold)
    if not pairs or not all(a.near and b.near and cmath.isfinite(a.near / b.near) for a, b in pairs):
        return None
    near = [a.near / b.near for a, b in pairs]
    if given.exact and gold.exact:
        ratios = {a.residue * pow(b.residue, -1, PRIME) % PRIME for a, b in pairs if a.residue and b.residue}
        if len(ratios) == 1 or not (given.opaque or gold.opaque):
            return (near[0].real, True) if len(ratios) == 1 else None
    same = all(close(ratio, near[0]) for ratio in near) and close(near[0], near[0].real)
    return (near[0].real, False) if same else None
