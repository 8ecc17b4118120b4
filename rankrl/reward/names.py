"""What stands in front of `=`: the name of a quantity, which an answer may leave out."""

from __future__ import annotations

import re

from rankrl.reward.tidy import squeezed, unwrapped

SCRIPT = r"(?:_(?:\w|\\?[A-Za-z]+|\{[^{}=<>]*\}))?"
ARGUMENTS = r"\([A-Za-z](?:, ?[A-Za-z])*\)"
NAME = rf"(?:\\(?:angle|triangle) ?)?\\?[A-Za-z]+'*{SCRIPT}'*(?:\^\{{-1\}})?(?:{ARGUMENTS})?"
SEGMENT = rf"(?:[A-Z]'*{SCRIPT}){{2,4}}"
FIGURE = rf"(?:\\(?:triangle|angle|odot|square|parallelogram) ?)?{SEGMENT}"
ACCENTED = r"\\(?:vec|overrightarrow|overline|hat|bar|widehat|tilde)(?:\{[^{}]*\}|[A-Za-z])" + SCRIPT
LABEL = re.compile(rf"(?:{NAME}|\(\\?[A-Za-z]+(?:, ?\\?[A-Za-z]+)+\))", re.ASCII)
QUANTITY = [
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"\[{SEGMENT}\]|\|{SEGMENT}\||\|{ACCENTED}\||m ?\\angle ?{SEGMENT}|{ACCENTED}",
        rf"{FIGURE}|{FIGURE}:{FIGURE}|{FIGURE} ?/ ?{FIGURE}|\\frac\{{{FIGURE}\}}\{{{FIGURE}\}}",
        rf"[A-Z]{SCRIPT}:[A-Z]{SCRIPT}",
        r"(?:[A-Z]|\\text\{ ?[A-Z][A-Za-z]* ?\}|\\Pr)(?:_\{?\w+\}?)?[(\[][^()\[\]]*[)\]]",
        r"\\frac\{(?:d|\\partial) ?\\?[A-Za-z]+\}\{(?:d|\\partial) ?[A-Za-z]+\}",
        rf"\\(?:sin|cos|tan|cot|sec|csc)(?:\^2)? ?(?:{NAME}|\({NAME}\))",
        r"[A-Za-z ]{2,40}",
    )
]
OPERATION = re.compile(r"\\(?:lim|int|iint|oint|sum|prod|det)(?![A-Za-z]).*", re.DOTALL)
SYMBOL = r"\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?"
SYMBOLS = re.compile(
    rf"{SYMBOL}(?: ?(?:\+|-|/|:|\\cdot ?|\\times ?) ?{SYMBOL})*|\\frac\{{{SYMBOL}\}}\{{{SYMBOL}\}}", re.ASCII
)
CURVE = re.compile(r"[xyz]{2,3}")
INDEXED = re.compile(r"(\\?[A-Za-z]+)_\{?\d+\}?")


def label(side: str) -> str:
    """The name of an unknown, of a function or of a measured thing; empty if the side is none."""
    plain = unwrapped(side)
    if CURVE.fullmatch(plain):
        return ""
    if LABEL.fullmatch(plain) or any(form.fullmatch(side) or form.fullmatch(plain) for form in QUANTITY):
        return squeezed(plain).replace(" ", "")
    return ""


def operation(side: str) -> bool:
    """Whether a side only says what is to be computed: a limit, an integral, a sum."""
    return OPERATION.fullmatch(side) is not None


def symbols_only(side: str) -> bool:
    """Whether a side is a sum, product or quotient of two letters or more, without numbers.

    An equation for one letter, `x^2 = 4`, would be the question again.
    """
    letters = set(re.findall(SYMBOL, side.replace(r"\frac", "").replace(r"\cdot", "").replace(r"\times", "")))
    return SYMBOLS.fullmatch(side) is not None and len({x for name in letters for x in name.split("_")[0]}) > 1


def stem(name: str) -> str:
    """`x` for `x_1`: the unknown whose solutions are counted by an index."""
    found = INDEXED.fullmatch(name)
    return found[1] if found else name
