"""Values of an expression at fixed points: exact if it is rational in its letters, else floating.

Exact values decide: rational functions that agree at random points are the same. Floating-point
values can only refute: expressions that differ there are different; those that agree need algebra.
This is also the guard before algebra: it only gets what this grammar reads, with every part within
the range of a double.
"""

from __future__ import annotations

import cmath
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Value = Fraction | complex
POINTS = (0, 1, 2)
DEEPEST = 12
LARGEST_POWER_OF_LETTERS = 64
MOST_BITS = 2048
TOLERANCE = 1e-8
TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[A-Za-z]+|[A-Za-z]|[-+*/^!()\[\]{}|_])", re.ASCII)
PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|[Nn][Oo])(?![A-Za-z])")
GREEK = "alpha beta gamma delta epsilon varepsilon theta lambda mu nu rho sigma tau phi varphi omega"
LETTERS = {rf"\{name}" for name in GREEK.split()}
CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j}
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
    r"\ln": cmath.log,
    r"\log": cmath.log10,
    r"\exp": cmath.exp,
}
PRODUCT = {"*", "/", r"\cdot", r"\times", r"\div"}
CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}


class Unreadable(ValueError):
    """Raised for text that is no expression of this grammar or has no finite value."""


@dataclass(frozen=True)
class Estimate:
    """The values of an expression at POINTS.

    `exact` if it is rational, where pi counts as a letter (pi is transcendental), else None; `near`
    in floating point.
    """

    exact: tuple[Fraction, ...] | None
    near: tuple[complex, ...]


class Expression:
    """A recursive-descent parser that evaluates the tokens of one text at one point.

    With `formal`, pi counts as a letter. Methods raise Unreadable for what they cannot read.
    """

    def __init__(self, found: list[str], point: int, formal: bool):
        self.tokens, self.point, self.formal = found, point, formal
        self.at = self.depth = self.letters = 0

    def value(self) -> Value:
        value = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable("tokens left")
        return value

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unreadable(f"wanted {wanted or 'a token'}, got {token or 'the end'}")
        self.at += 1
        return token

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        total = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            total = bounded(total + sign * self.product())
        self.depth -= 1
        return total

    def product(self) -> Value:
        value = self.signed()
        while True:
            token = self.peek()
            if token in PRODUCT:
                self.take()
                factor = self.signed()
                value = bounded(value / factor if token in ("/", r"\div") else value * factor)
            elif self.starts_factor(token):
                value = bounded(value * self.power())
            else:
                return value

    def starts_factor(self, token: str) -> bool:
        """Whether `token` starts a factor that follows without an operator.

        A number does not: `x 2`, `2 3`, and `2{3}`, which looks like 23, are not read.
        """
        if token == r"\frac" and self.tokens[self.at - 1][0].isdigit() and self.simple_fraction():
            raise Unreadable("a mixed number inside an expression")
        if token == "{" and next((t for t in self.tokens[self.at :] if t != "{"), "}")[0] in "0123456789.":
            return False
        known = token in FUNCTIONS or token in ("(", "[", "{", r"\frac", r"\sqrt", r"\binom")
        return known or is_name(token)

    def simple_fraction(self) -> bool:
        return all(t in "{}" or t[0].isdigit() for t in self.tokens[self.at + 1 : self.at + 7])

    def signed(self) -> Value:
        sign = 1
        if self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
        return sign * self.power()

    def power(self) -> Value:
        letters = self.letters
        base = self.atom()
        if self.peek() == "!":
            self.take()
            base = factorial(base)
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.argument(signed=True)
        if self.letters > letters and abs(complex(exponent)) > LARGEST_POWER_OF_LETTERS:
            raise Unreadable("too high a power of a sum")
        if self.peek() in ("^", "!"):
            raise Unreadable("an unbraced tower")
        return raised(base, exponent)

    def argument(self, signed: bool = False) -> Value:
        """The value that a command or `^` applies to: a group or one token.

        Several bare digits are not read, because TeX would take only the first.
        """
        token = self.peek()
        if token == "{":
            return self.group()
        if signed and token == "-":
            self.take()
            return -self.argument(signed=True)
        if token and token[0].isdigit() and (signed or len(token) == 1):
            return Fraction(self.take().rstrip("."))
        if is_name(token):
            return self.atom()
        raise Unreadable(token)

    def group(self) -> Value:
        opening = self.take()
        value = self.sum()
        self.take(CLOSING[opening])
        if opening != "|":
            return value
        return abs(value) if isinstance(value, Fraction) else complex(abs(value))

    def atom(self) -> Value:
        token = self.peek()
        if token in CLOSING:
            return self.group()
        self.take()
        if token[0].isdigit() or token[0] == ".":
            return bounded(Fraction(token.rstrip(".")))
        if is_name(token):
            return self.name(token)
        if token == r"\frac":
            return bounded(self.argument() / self.argument())
        if token == r"\sqrt":
            return self.root()
        if token == r"\binom":
            return binomial(self.argument(), self.argument())
        if token in FUNCTIONS:
            return self.function(token)
        raise Unreadable(token)

    def root(self) -> Value:
        degree: Value = self.group() if self.peek() == "[" else Fraction(2)
        return raised(self.argument(), 1 / degree)

    def function(self, name: str) -> Value:
        base = power = None
        if self.peek() == "_" and name == r"\log":
            self.take()
            base = self.argument(signed=True)
        if self.peek() == "^":
            self.take()
            power = self.argument(signed=True)
        if power is not None and power != 2:
            raise Unreadable("an inverse function or a reciprocal")
        value = FUNCTIONS[name](complex(self.group() if self.peek() in CLOSING else self.bare_argument()))
        value = value if base is None else value / cmath.log10(complex(base))
        return bounded(value if power is None else value**2)

    def bare_argument(self) -> Value:
        """The argument in `\\sin 2x`: factors up to a sign, a bracket or the next function."""
        value = self.power()
        while self.peek() not in FUNCTIONS and self.peek() not in ("(", "[") and self.starts_factor(self.peek()):
            value = bounded(value * self.power())
        return value

    def name(self, name: str) -> Value:
        """The value of a constant, or of a letter at this point.

        Letters are positive at the first two points, negative at the third.
        """
        if name in CONSTANTS and self.peek() != "_" and not (self.formal and name == r"\pi"):
            return CONSTANTS[name]
        self.letters += 1
        if self.peek() == "_":
            name += self.subscript()
        share = Fraction(zlib.crc32(f"{name} {self.point}".encode()), 2**32)
        return Fraction(1, 2) + share if self.point < 2 else -Fraction(1, 4) - share

    def subscript(self) -> str:
        start, depth = self.at, 0
        self.take("_")
        while True:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
            if depth == 0:
                return "".join(self.tokens[start : self.at])


def is_name(token: str) -> bool:
    return token in LETTERS or token in CONSTANTS or (len(token) == 1 and token.isalpha())


def tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise Unreadable(text[at : at + 10])
        found.append(match[1])
        at = match.end()
    return found


def bounded(value: Value) -> Value:
    """The value, in floating point if its exact form is longer than MOST_BITS.

    Raises Unreadable beyond the range of a double.
    """
    if isinstance(value, Fraction):
        long = value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS
        value = complex(value) if long else value
    if not abs(complex(value)) < 1e300:  # false for not-a-number
        raise Unreadable("no finite value")
    return value


def raised(base: Value, exponent: Value) -> Value:
    """base ** exponent: exact for whole exponents while the result is short, else floating point.

    It never builds an integer of unbounded size.
    """
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= MOST_BITS:
            return bounded(base**exponent.numerator)
    return bounded(complex(base) ** complex(exponent))


def whole(value: Value, largest: int = 100) -> int:
    """The value as an integer from 0 to `largest`. Raises Unreadable if it is none."""
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= largest:
        raise Unreadable("not a whole number in range")
    return value.numerator


def factorial(value: Value) -> Value:
    return Fraction(math.factorial(whole(value)))


def binomial(top: Value, bottom: Value) -> Value:
    factors: list[Value] = [(top - k) / Fraction(k + 1) for k in range(whole(bottom))]
    return bounded(math.prod(factors, start=Fraction(1)))


def estimate(text: str) -> Estimate | None:
    """The values of an expression at POINTS.

    None if the text is not an expression of bounded size with finite values.
    """
    if PROSE.search(text):
        return None
    try:
        found = tokens(text)
        near = [Expression(found, point, formal=False).value() for point in POINTS]
        formal = [Expression(found, point, True).value() for point in POINTS] if r"\pi" in found else near
    except (Unreadable, ArithmeticError, ValueError):
        return None
    rational = "|" not in found  # |x| and x are equal on one side of 0 only
    exact = tuple(value for value in formal if isinstance(value, Fraction) and rational)
    return Estimate(exact if len(exact) == len(POINTS) else None, tuple(complex(value) for value in near))


def close(a: complex, b: complex) -> bool:
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-12


def agree(given: Estimate, gold: Estimate) -> bool | None:
    """Whether the expressions are equal; None where floating point cannot tell."""
    if given.exact and gold.exact:
        return given.exact == gold.exact
    return None if all(close(a, b) for a, b in zip(given.near, gold.near, strict=True)) else False


def factor(given: Estimate, gold: Estimate) -> tuple[float, bool] | None:
    """(the constant real factor between two expressions, whether it is certain).

    None if there is no such factor, or if one of them is 0 at a point.
    """
    if not all(given.near) or not all(gold.near):
        return None
    if given.exact and gold.exact:
        ratios = {a / b for a, b in zip(given.exact, gold.exact, strict=True)}
        return (float(ratios.pop()), True) if len(ratios) == 1 else None
    near = [a / b for a, b in zip(given.near, gold.near, strict=True)]
    constant = all(close(ratio, near[0]) for ratio in near) and close(near[0], near[0].real)
    return (near[0].real, False) if constant else None
