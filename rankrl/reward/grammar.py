"""The words of an expression: letters, constants, functions, brackets; and its tokens."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from fractions import Fraction

from rankrl.reward.value import Unreadable

TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[A-Za-z]+|\\[{}]|[A-Za-z]|[-+*/^!()\[\]{}|_',])", re.ASCII)
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega hbar ell partial"
)
LETTERS = {rf"\{name}" for name in GREEK.split()}
OVER = "vec overrightarrow hat widehat bar overline tilde dot ddot angle triangle"
ACCENTS = {rf"\{name}" for name in OVER.split()}
VECTORS = {r"\vec", r"\overrightarrow", r"\hat"}
CALLED = {"f", "g", r"\Gamma", r"\Phi", r"\Psi", r"\zeta"}
"""Letters that are functions, not factors, before a bracket."""
CONSTANTS = {r"\pi", "e", "i"}
FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    r"\sin": cmath.sin,
    r"\cos": cmath.cos,
    r"\tan": cmath.tan,
    r"\cot": lambda z: 1 / cmath.tan(z),
    r"\sec": lambda z: 1 / cmath.cos(z),
    r"\csc": lambda z: 1 / cmath.sin(z),
    r"\arcsin": cmath.asin,
    r"\arccos": cmath.acos,
    r"\arctan": cmath.atan,
    r"\sinh": cmath.sinh,
    r"\cosh": cmath.cosh,
    r"\tanh": cmath.tanh,
    r"\ln": cmath.log,
    r"\log": cmath.log10,
    r"\exp": cmath.exp,
}
ANGLES = {name for name in FUNCTIONS if name[1:4] in ("sin", "cos", "tan", "cot", "sec", "csc")}
STEPS = {r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
WIDE = r"\lfloor"
"""Stands among counted letters where others take values up to 64: floors are constant nearby."""
SEVERAL: dict[str, Callable[..., Fraction | int]] = {r"\max": max, r"\min": min, r"\gcd": math.gcd, r"\lcm": math.lcm}
PRODUCT = {"*", "/", r"\cdot", r"\times", r"\div"}
CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
ENDS = {")", "]", "!", *STEPS.values()}


def tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise Unreadable(text[at : at + 10])
        found.append(match[1])
        at = match.end()
    if r"\times" in found and VECTORS & {*found}:
        raise Unreadable("a product of vectors, whose order counts")
    return found


def is_name(token: str) -> bool:
    return token in LETTERS or token in CONSTANTS or token in ACCENTS or (len(token) == 1 and token.isalpha())
