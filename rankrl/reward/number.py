"""Exact values of numbers.

Numbers are integers, decimals, fractions, mixed numbers, scientific notation and repeating
decimals.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rankrl.reward.tidy import squeezed

LARGEST_EXPONENT = 300
DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,40})"
DECIMAL = rf"(?:{DIGITS}(?:\.\d{{0,40}})?|\.\d{{1,40}})"
FORMS = [
    re.compile(form, re.ASCII)
    for form in (
        rf"(?P<top>{DECIMAL})",
        rf"(?P<top>{DECIMAL})/(?P<bottom>{DECIMAL})",
        rf"\\frac\{{(?P<top>[+-]?{DECIMAL})\}}\{{(?P<bottom>[+-]?{DECIMAL})\}}",
        rf"(?P<whole>{DIGITS})\\frac\{{(?P<top>\d{{1,40}})\}}\{{(?P<bottom>\d{{1,40}})\}}",
        rf"(?P<whole>{DIGITS}) (?P<top>\d{{1,40}})/(?P<bottom>\d{{1,40}})",
        rf"(?P<top>{DECIMAL})(?:[eE]|(?:\\times|\\cdot|\*)10\^)(?:\{{(?P<power>[+-]?\d{{1,3}})\}}|(?P<bare>[+-]?\d{{1,3}}))",
        r"10\^(?:\{(?P<power>[+-]?\d{1,3})\}|(?P<bare>[+-]?\d{1,3}))",
        r"(?P<top>\d{0,20}\.\d{0,20})\\(?:overline|bar)\{(?P<cycle>\d{1,20})\}",
    )
]


def number(text: str) -> Fraction | None:
    """The exact value of a number in one of FORMS, with at most one sign in front, else None."""
    plain = squeezed(text)
    negative = plain.startswith("-")
    plain = plain[1:].lstrip() if plain.startswith(("-", "+")) else plain
    if plain.isascii() and plain.isdigit() and len(plain) <= 40:  # as below, but at once
        return Fraction(-int(plain) if negative else int(plain))
    for form in FORMS:
        match = form.fullmatch(plain)
        if match:
            value = _value(match.groupdict())
            return -value if negative and value is not None else value
    return None


def _value(part: dict[str, str | None]) -> Fraction | None:
    power = int(part.get("power") or part.get("bare") or 0)
    bottom = _decimal(part.get("bottom") or "1")
    if abs(power) > LARGEST_EXPONENT or not bottom:
        return None
    top, cycle = part.get("top") or "1", part.get("cycle")
    value = _decimal(part.get("whole") or "0") + _decimal(top) / bottom * Fraction(10) ** power
    if cycle:
        value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(top.partition(".")[2]))
    return value


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "")
    return Fraction(f"0{text}" if text.startswith(".") else text.rstrip(".") or "0")
