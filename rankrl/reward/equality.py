"""Whether two answers are the same: True, False, or None where only algebra can tell.

docs/grader.md has the rules as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from rankrl.reward.number import Quantity, number, quantity
from rankrl.reward.points import agree, estimate, factor
from rankrl.reward.structure import Node, read
from rankrl.reward.tidy import squeezed, tidy, words

Prove = Callable[[str, str, bool], bool | None]
"""(given, gold, same_ratio) -> whether they are equal, or None: cannot tell.

With `same_ratio`, equal up to a constant factor is enough.
"""
LONGEST_ANSWER = 300
DEEPEST = 24
INFINITE = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}
FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}


def undecided(given: str, gold: str, same_ratio: bool) -> None:
    """The `Prove` of a process that does no algebra: it never decides."""
    return None


def outside(text: str) -> bool:
    """Whether an answer is not read at all, because it is empty, too long or too deeply nested."""
    depth = deepest = 0
    if not text.strip() or len(text) > LONGEST_ANSWER:
        return True
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest > DEEPEST


def judge(given: str, gold: str, prove: Prove = undecided) -> str | None:
    """`correct`, `wrong` or `unparsable` for a given answer; None if `prove` cannot tell.

    Never raises.
    """
    if outside(given) or outside(gold):
        return "unparsable"
    if given.strip() == gold.strip():
        return "correct"
    value, target = number(given), number(gold)
    if value is not None and target is not None:
        return "correct" if value == target else "wrong"
    try:
        left, right = structure(given), structure(gold)
        same = equal(left, right, prove)
        if same is None:
            return None
        return "correct" if same else "unparsable" if legible(right) and not legible(left) else "wrong"
    except (ValueError, RecursionError, IndexError):
        return "unparsable"


@lru_cache(maxsize=4096)
def structure(answer: str) -> Node:
    """The structure of an answer, which is tidied first.

    Cached, because a gold answer comes back with every sample of its item.
    """
    return read(tidy(answer))


def legible(node: Node) -> bool:
    """Whether every leaf is a number, an infinity or an expression."""
    if node.parts:
        return all(legible(part) for part in node.parts)
    read_as = quantity(node.text)
    return squeezed(node.text) in INFINITE or read_as.exact is not None or estimate(read_as.text) is not None


def every(answers: Iterable[bool | None]) -> bool | None:
    """Whether all answers are True: False if one is False, else None if one is None."""
    unknown = False
    for answer in answers:
        if answer is False:
            return False
        unknown |= answer is None
    return None if unknown else True


def equal(given: Node, gold: Node, prove: Prove) -> bool | None:
    if given.kind == "equation" and gold.kind != "equation":
        sides = given.parts[1:] if given.label else given.parts
        return every(equal(side, gold, prove) for side in sides)
    if gold.kind == "equation" and given.kind != "equation":
        return equal(given, gold.parts[1], prove) if gold.label and len(gold.parts) == 2 else False
    if given.kind != gold.kind or (given.label and gold.label and given.label != gold.label):
        return False
    return KINDS[given.kind](given, gold, prove)


def same_equation(given: Node, gold: Node, prove: Prove) -> bool | None:
    if given.label and gold.label:
        if given.label != gold.label:
            return False
        return every(equal(side, gold.parts[-1], prove) for side in given.parts[1:])
    solved = gold.label and not re.search(r"(?<![\\A-Za-z])[A-Za-z]", gold.parts[-1].text)
    if solved or len(given.parts) != 2 or len(gold.parts) != 2:
        return False  # 2x = 10 repeats the question: it is no answer for x = 5
    return same_relation(given, gold, prove)


def same_relation(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether left side minus right side is the same up to a constant factor.

    For inequalities, the sign of the factor must fit their directions.
    """
    if len(given.parts) != 2 or len(gold.parts) != 2:
        return squeezed(given.text) == squeezed(gold.text)
    ours, theirs = (f"({n.parts[0].text})-({n.parts[1].text})" for n in (given, gold))
    value, target = estimate(ours), estimate(theirs)
    if value is None or target is None:
        return squeezed(given.text) == squeezed(gold.text)
    found = factor(value, target)
    if found is None:
        return False
    ratio, certain = found
    if given.mark != "=" and (FLIPPED.get(given.mark) if ratio < 0 else given.mark) != gold.mark:
        return False
    return certain or squeezed(given.text) == squeezed(gold.text) or prove(ours, theirs, True)


def same_list(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether both hold the same values, each equally often, in any order.

    A label that all values share (x = 1 or x = 2) may be left out. Values of several unknowns
    (x = 1, y = 2) never equal a list of plain values.
    """
    ours, theirs = (unlabelled(node.parts) for node in (given, gold))
    several = [any(part.kind == "equation" for part in parts) for parts in (ours, theirs)]
    if len(ours) != len(theirs) or several[0] != several[1]:
        return False
    left, unknown = list(ours), False
    for target in theirs:
        answers = [equal(value, target, prove) for value in left]
        if True in answers:
            left.pop(answers.index(True))
        elif None in answers:
            unknown = True
        else:
            return False
    return None if unknown else True


def unlabelled(parts: tuple[Node, ...]) -> tuple[Node, ...]:
    """The parts with each equation replaced by its right side, if all name the same unknown.

    Otherwise the parts as they are.
    """
    labels = {part.label for part in parts if part.kind == "equation" and len(part.parts) == 2}
    if len(labels) != 1 or "" in labels:
        return parts
    return tuple(part.parts[1] if part.kind == "equation" else part for part in parts)


def same_group(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether both hold the same values in the same order.

    Groups of two values may be intervals, so their brackets must agree (open or closed). Longer
    groups are tuples, whatever their brackets.
    """
    if len(given.parts) != len(gold.parts) or (len(gold.parts) == 2 and given.mark != gold.mark):
        return False
    return every(equal(a, b, prove) for a, b in zip(given.parts, gold.parts, strict=True))


def same_matrix(given: Node, gold: Node, prove: Prove) -> bool | None:
    if len(given.parts) != len(gold.parts):
        return False
    return every(equal(a, b, prove) for a, b in zip(given.parts, gold.parts, strict=True))


def same_leaf(given: Node, gold: Node, prove: Prove) -> bool | None:
    ours, theirs = squeezed(given.text), squeezed(gold.text)
    if ours in INFINITE or theirs in INFINITE:
        return INFINITE.get(ours) == INFINITE.get(theirs)
    if ours == theirs:
        return bool(ours)
    return same_quantity(quantity(given.text), quantity(gold.text), given.text, gold.text, prove)


def same_quantity(given: Quantity, gold: Quantity, given_text: str, gold_text: str, prove: Prove) -> bool | None:
    if given.unit and gold.unit and given.unit != gold.unit and "%" not in (given.unit, gold.unit):
        return False
    if given.exact is not None and gold.exact is not None:
        return same_number(given, gold)
    if "%" in (given.unit, gold.unit) and given.unit != gold.unit:
        return False
    value, target = estimate(given.text), estimate(gold.text)
    if value is None or target is None:
        return target is None and words(given_text) == words(gold_text) != ""
    same = given.text == gold.text or agree(value, target)
    return prove(given.text, gold.text, False) if same is None else same


def same_number(given: Quantity, gold: Quantity) -> bool:
    """Whether two exact values are the same.

    A unit may be left out. A percentage stands for its value (50% is 0.5). Where a percentage was
    asked for, its number counts too (50).
    """
    assert given.exact is not None and gold.exact is not None
    if (given.unit == "%") == (gold.unit == "%"):
        return given.exact == gold.exact
    if (given.unit or gold.unit) and "%" not in (given.unit or "%", gold.unit or "%"):
        return False
    if gold.unit == "%":
        return given.exact in (gold.exact, gold.exact / 100) and given.unit is None
    asked_in_percent = abs(gold.exact) > 1
    return gold.unit is None and (given.exact / 100 == gold.exact or (asked_in_percent and given.exact == gold.exact))


KINDS: dict[str, Callable[[Node, Node, Prove], bool | None]] = {
    "leaf": same_leaf,
    "list": same_list,
    "group": same_group,
    "union": same_list,
    "matrix": same_matrix,
    "row": same_matrix,
    "equation": same_equation,
    "relation": same_relation,
}
