"""Whether two answers are the same: True, False, or None where only algebra can tell.

docs/grader.md has the rules as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from rankrl.reward.leaves import INFINITE, Prove, rounds, same_leaf, undecided
from rankrl.reward.names import operation, stem, symbols_only
from rankrl.reward.number import number
from rankrl.reward.points import agree, constant, estimates, factor, letters_of, prose
from rankrl.reward.realset import real_set
from rankrl.reward.structure import FLIP, Node, both_notations, qualified, read
from rankrl.reward.tidy import squeezed, tidy
from rankrl.reward.units import quantity

LONGEST_ANSWER = 2000
LONGEST_LEAF = 300
DEEPEST = 24
UNSOLVED = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")


def outside(text: str) -> bool:
    """Whether an answer is not read at all, because it is empty, too long or too deeply nested.

    A long one is read only where it is a list or a tuple of short parts.
    """
    depth = deepest = 0
    if not text.strip() or len(text) > LONGEST_ANSWER:
        return True
    if len(text) > LONGEST_LEAF and max(map(len, text.split(","))) > LONGEST_LEAF // 3:
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
        (left, domain), (right, wanted) = structure(given), structure(gold)
        same = False if domain and wanted and domain != wanted else equal(left, right, prove)
        if same is None:
            return None
        return "correct" if same else "unparsable" if legible(right) and not legible(left) else "wrong"
    except (ValueError, ArithmeticError, LookupError, RecursionError):
        return "unparsable"


@lru_cache(maxsize=4096)
def structure(answer: str) -> tuple[Node, str]:
    """The structure of an answer, which is tidied first, and the domain that it states.

    Cached, because a gold answer comes back with every sample of its item.
    """
    plain, domain = qualified(tidy(answer))
    return both_notations(plain) or read(plain), domain


def legible(node: Node) -> bool:
    """Whether every leaf is a number, an infinity or an expression of ordinary size."""
    if node.kind in ("builder", "congruence") or node.mark == r"\neq":
        return False  # no values, but conditions for one
    if node.parts:
        return all(legible(part) for part in node.parts)
    read_as = quantity(node.text)
    if squeezed(node.text) in INFINITE or read_as.exact is not None:
        return True
    values = None if prose(read_as.text) else estimates(read_as.text, "")[0]
    return values is not None and not values.large


def every(answers: Iterable[bool | None]) -> bool | None:
    """Whether all answers are True: False if one is False, else None if one is None."""
    unknown = False
    for answer in answers:
        if answer is False:
            return False
        unknown |= answer is None
    return None if unknown else True


def some(answers: Iterable[bool | None]) -> bool | None:
    """Whether one answer is True: True if one is, else None if one is None."""
    unknown = False
    for answer in answers:
        if answer:
            return True
        unknown |= answer is None
    return None if unknown else False


def equal(given: Node, gold: Node, prove: Prove) -> bool | None:
    if given.kind == gold.kind and given.text and squeezed(given.text) == squeezed(gold.text):
        return same_label(given, gold) and given.mark == gold.mark
    if gold.kind == "either" and not gold.mark and given.kind == "either":
        return same_parts(given, gold, prove)
    if given.kind == "either":
        if given.mark and not rounds(given.parts[0].text, given.parts[1].text):
            return False
        either = [equal(part, gold, prove) for part in given.parts]
        return some(either) if given.mark else every(either)
    if gold.kind == "either":
        return some(equal(given, part, prove) for part in gold.parts)
    if given.kind == "equation" and gold.kind != "equation":
        return every(equal(side, gold, prove) for side in stated(given))
    if gold.kind == "equation" and given.kind != "equation":
        return some(equal(given, side, prove) for side in asked_for(gold))
    if "set" in (given.kind, gold.kind):
        return same_label(given, gold) and same_set(given, gold, prove)
    if given.kind != gold.kind or not same_label(given, gold):
        return False
    return KINDS[given.kind](given, gold, prove)


def same_label(given: Node, gold: Node) -> bool:
    return not (given.label and gold.label) or given.label == gold.label


def stated(given: Node) -> tuple[Node, ...]:
    """The sides of a given equation that must equal the gold value.

    These are all sides but the name of what was asked for in front: `x`, `|AB|`, `P(X=2)`, `a + b`.
    """
    first = given.parts[0].text
    named = given.label or operation(first) or symbols_only(first)
    return given.parts[1:] if named else given.parts


def asked_for(gold: Node) -> tuple[Node, ...]:
    """The sides of a gold equation that are its value; none of an equation of a curve, `x + y = 1`.

    These are the sides after a name, and those of an identity, `\\log_6 216 = 3`.
    """
    first, last = gold.parts[0].text, gold.parts[-1].text
    if gold.label or operation(first) or not letters_of(gold.text) - set("ei"):
        return gold.parts[1:]
    left, right = estimates(first, last)
    return gold.parts[1:] if left and right and agree(left, right) else ()


def same_equation(given: Node, gold: Node, prove: Prove) -> bool | None:
    if given.label and gold.label:
        if given.label != gold.label:
            return False
        return every(some(equal(side, target, prove) for target in gold.parts[1:]) for side in given.parts[1:])
    if gold.label and not given.label and not UNSOLVED.search(gold.parts[-1].text):
        return False  # 2x = 10 repeats the question: it is no answer for x = 5
    sides = () if gold.label else asked_for(gold)
    if sides:
        return every(some(equal(side, target, prove) for target in sides) for side in stated(given))
    return same_relation(given, gold, prove) if len(given.parts) == len(gold.parts) == 2 else False


def same_relation(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether left side minus right side is the same up to a constant factor.

    For inequalities, the sign of the factor must fit their directions.
    """
    if len(given.parts) != 2 or len(gold.parts) != 2:
        return given.mark == gold.mark and len(given.parts) == len(gold.parts) and same_parts(given, gold, prove)
    ours, theirs = (f"({n.parts[0].text})-({n.parts[1].text})" for n in (given, gold))
    value, target = estimates(ours, theirs)
    if value is None or target is None or constant(value) or constant(target):
        return given.mark == gold.mark and same_parts(given, gold, prove)
    found = factor(value, target)
    if found is None:
        return False
    ratio, certain = found
    if given.mark != "=" and (FLIP.get(given.mark) if ratio < 0 and given.mark != r"\neq" else given.mark) != gold.mark:
        return False
    return certain or prove(ours, theirs, True)


def same_list(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether both hold the same values, each equally often, in any order.

    A label that all values share (x = 1 or x = 2, x_1 = 1 and x_2 = 2) may be left out, but two
    must agree. Values of several unknowns (x = 1, y = 2) never equal a list of plain values.
    """
    (name, ours), (wanted, theirs) = unlabelled(given.parts), unlabelled(gold.parts)
    if counted(given.parts) and counted(gold.parts):
        ours, theirs = given.parts, gold.parts
    if name and wanted and name != wanted:
        return False
    several = [any(part.kind == "equation" and part.label for part in parts) for parts in (ours, theirs)]
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


def unlabelled(parts: tuple[Node, ...]) -> tuple[str, tuple[Node, ...]]:
    """(name, values) where all equations name one unknown, else ("", the parts as they are)."""
    names = {part.label for part in parts if part.kind == "equation" and len(part.parts) == 2}
    stems = {stem(name) for name in names} if len(names) > 1 else names
    if len(stems) != 1 or "" in names or any(part.kind == "equation" and len(part.parts) != 2 for part in parts):
        return "", parts
    return stems.pop(), tuple(part.parts[1] if part.kind == "equation" else part for part in parts)


def counted(parts: tuple[Node, ...]) -> bool:
    """Whether the parts are x_1 = 1, x_2 = 2: an index says which is which."""
    names = [part.label for part in parts]
    return all(names) and len({*names}) == len(names) > 1


def same_parts(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether both hold the same values in the same order."""
    if len(given.parts) != len(gold.parts):
        return False
    return every(equal(a, b, prove) for a, b in zip(given.parts, gold.parts, strict=True))


def same_group(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether both are the same tuple or interval.

    Groups of two values may be intervals, so their brackets must agree (open or closed). Longer
    groups are tuples, whatever their brackets.
    """
    if len(gold.parts) == 2 and given.mark != gold.mark:
        return False
    return same_parts(given, gold, prove)


def same_set(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether sets of reals are the same; with other ends than numbers, whether their parts are."""
    ours, theirs = real_set(given), real_set(gold)
    if ours is not None and theirs is not None:
        return ours == theirs
    if given.kind != gold.kind or given.mark != gold.mark:
        return False
    return same_parts(given, gold, prove) if gold.mark == r"\setminus" else same_list(given, gold, prove)


def same_builder(given: Node, gold: Node, prove: Prove) -> bool | None:
    if given.mark != gold.mark:
        return False
    return same_parts(given, gold, prove)


def same_congruence(given: Node, gold: Node, prove: Prove) -> bool | None:
    """Whether two residues are the same modulo the same number."""
    ours, theirs, modulus = (number(text) for text in (given.parts[1].text, gold.parts[1].text, gold.mark))
    if given.mark != gold.mark:
        return False
    if ours is None or theirs is None or not modulus:
        return same_parts(given, gold, prove)
    return equal(given.parts[0], gold.parts[0], prove) and (ours - theirs) % modulus == 0


KINDS: dict[str, Callable[[Node, Node, Prove], bool | None]] = {
    "leaf": same_leaf,
    "list": same_list,
    "group": same_group,
    "matrix": same_parts,
    "row": same_parts,
    "equation": same_equation,
    "relation": same_relation,
    "builder": same_builder,
    "congruence": same_congruence,
}
