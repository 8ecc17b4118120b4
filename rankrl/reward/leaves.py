"""Whether two leaves are the same: quantities, expressions, words, bases, times of day."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rankrl.reward.points import Estimate, agree, estimates, letters_of
from rankrl.reward.structure import Node
from rankrl.reward.tidy import squeezed, unwrapped, words, wordy
from rankrl.reward.units import Quantity, asked, quantity
from rankrl.reward.value import Value, rational

Prove = Callable[[str, str, bool], bool | None]
"""(given, gold, same_ratio) -> whether they are equal, or None: cannot tell.

With `same_ratio`, equal up to a constant factor is enough.
"""
INFINITE = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}
BASE = re.compile(r"([0-9][0-9A-Z]*|[A-Z]+[0-9][0-9A-Z]*)_\{?(\d\d?)\}?", re.ASCII)
CLOCK = re.compile(r"(\d\d?):(\d\d) ?(?:([ap])\.? ?m\.?)?", re.ASCII | re.IGNORECASE)
PLAIN_TEXT = re.compile(r"\\text|(?<![\\A-Za-z])(?!d[a-z])[A-Za-z]{3,}|[^ -~]|['!]")
COMPUTED = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")
SHORT_WORD = "no on of or is it at to in by my me we he up us so do go if am an as be odd even yes none ten net"


def undecided(given: str, gold: str, same_ratio: bool) -> None:
    """The `Prove` of a process that does no algebra: it never decides."""
    return None


def same_leaf(given: Node, gold: Node, prove: Prove) -> bool | None:
    ours, theirs = squeezed(given.text), squeezed(gold.text)
    if ours in INFINITE or theirs in INFINITE:
        return INFINITE.get(ours) == INFINITE.get(theirs)
    if ours == theirs:
        return bool(ours)
    for reading in (base, clock):
        if reading(ours) or reading(theirs):
            return reading(ours) == reading(theirs)
    if is_word(given) and is_word(gold):
        return same_words(given, gold)
    if given.mark or gold.mark:
        return same_asked(given, gold)
    same = same_quantity(quantity(given.text), quantity(gold.text), prove)
    return same_asked(given, gold) if same is False else same


def is_word(node: Node) -> bool:
    return node.mark == "words" or wordy(node.text)


def base(text: str) -> tuple[str, str] | None:
    """(digits, base) of `204_5`, `\\text{AB3}_{12}`: it is compared as written."""
    found = BASE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    return (found[1], found[2]) if found and all(int(digit, 36) < int(found[2]) for digit in found[1]) else None


def clock(text: str) -> tuple[int, str, str] | None:
    """(hour, minutes, a or p) of a time of day, `8:34 p.m.`."""
    found = CLOCK.fullmatch(unwrapped(text))
    return (int(found[1]), found[2], (found[3] or "").lower()) if found else None


def same_words(given: Node, gold: Node) -> bool:
    """Whether two words are the same; letters beside each other may be a product in any order.

    They are where all of them are small, at most four, in order (or without vowels) and no word.
    """
    if words(given.text) == words(gold.text):
        return True
    runs = given.text + gold.text
    product = not (given.mark or gold.mark) and runs.isalpha() and runs.islower() and len(gold.text) <= 4
    product = product and ("".join(sorted(gold.text)) in (given.text, gold.text) or not set(gold.text) & set("aeiou"))
    return product and sorted(given.text) == sorted(gold.text) and not {given.text, gold.text} & set(SHORT_WORD.split())


def same_asked(given: Node, gold: Node) -> bool:
    """Whether a number is what the gold says with words: `7 \\text{ integers}`, `four`.

    The answer may have words of its own if the gold has them, too.
    """
    wanted = asked(gold.text)
    if wanted is None:
        return words(given.text) == words(gold.text) != "" and not computed(gold)
    ours = quantity(given.text)
    if ours.exact is None:
        said = asked(given.text)
        told = set(unwrapped(given.text).lower().split()[1:]) <= set(unwrapped(gold.text).lower().split())
        return bool(said and told and said.exact == wanted.exact)
    return ours.unit is None and ours.exact == wanted.exact


def computed(gold: Node) -> bool:
    return COMPUTED.search(gold.text) is not None


def same_quantity(given: Quantity, gold: Quantity, prove: Prove) -> bool | None:
    if given.unit and gold.unit and given.unit != gold.unit and "%" not in (given.unit, gold.unit):
        return False
    if given.exact is not None and gold.exact is not None:
        return same_number(given, gold)
    if "%" in (given.unit, gold.unit) and given.unit != gold.unit:
        return False
    value, target = estimates(given.text, gold.text)
    value, target = known(given, value, target), known(gold, target, value)
    if target is None and provable(given.text, gold.text):
        return prove(given.text, gold.text, False)
    if value is None or target is None:
        return False
    same = given.text == gold.text or agree(value, target)
    return prove(plain_degrees(given.text), plain_degrees(gold.text), False) if same is None else same


def provable(given: str, gold: str) -> bool:
    """Whether algebra may read a gold integral, sum or limit, which this grammar does not.

    Its parser makes all letters small and leaves out primes, so there must be nothing to mix up.
    """
    if not COMPUTED.search(gold) or PLAIN_TEXT.search(given + gold):
        return False
    letters = letters_of(given) | letters_of(gold)
    return len({letter.lower() for letter in letters}) == len(letters)


def known(found: Quantity, value: Estimate | None, like: Estimate | None) -> Estimate | None:
    """The value of a number that is no expression, `5\\frac{1}{4}`, at the points of the other."""
    if value or found.exact is None or like is None:
        return value
    values: tuple[Value, ...] = (rational(found.exact),) * len(like.values)
    return Estimate(values, True, False, False)


def plain_degrees(text: str) -> str:
    """The text for algebra: degrees as radians within an expression of angles, else left out."""
    if r"^\circ" not in text:
        return text
    new = r"{\\frac{\1\\pi}{180}}" if re.search(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)", text) else r"\1"
    return re.sub(r"(\d+\.?\d*)\^\\circ", new, text)


def rounds(exact: str, rounded: str) -> bool:
    """Whether the second of two numbers is the first, rounded or cut to its digits."""
    ours, theirs = quantity(exact), quantity(rounded)
    if theirs.exact is None or (ours.unit and theirs.unit and ours.unit != theirs.unit):
        return False
    value, _ = estimates(ours.text, "")
    near = (
        ours.exact
        if ours.exact is not None
        else Fraction(value.values[0].near.real)
        if value and value.values[0]
        else None
    )
    places = len(theirs.text.partition(".")[2])
    return near is not None and abs(near - theirs.exact) <= Fraction(1 if places > 1 else Fraction(1, 2), 10**places)


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
