"""A parser that evaluates the text of an expression at one point, while it reads.

It is also the guard before algebra, which only gets what this grammar reads.
"""

from __future__ import annotations

import cmath
import math
import random
import zlib
from fractions import Fraction
from functools import lru_cache

from rankrl.reward.grammar import (
    ACCENTS,
    ANGLES,
    CALLED,
    CLOSING,
    ENDS,
    FUNCTIONS,
    LETTERS,
    PRODUCT,
    SEVERAL,
    STEPS,
    WIDE,
    is_name,
)
from rankrl.reward.value import (
    I_RESIDUE,
    Unreadable,
    Value,
    binomial,
    factorial,
    formal,
    raised,
    rational,
)

DEEPEST = 12
COUNTED_POINTS = 12
LARGEST_POWER_OF_LETTERS = 64
LARGEST_ORDINARY = 1e300


@lru_cache(maxsize=256)
def whole_numbers(name: str) -> list[int]:
    """The values of a letter that counts, all different: 13 to 24 for m and n, else 1 to 12."""
    first = 13 if name in "mnMN" else 1
    return random.Random(name).sample(range(first, first + COUNTED_POINTS), COUNTED_POINTS)


class Expression:
    """A recursive-descent parser over the tokens of one text.

    Letters in `counted` are small whole numbers, others fractions. Methods raise Unreadable for
    what they cannot read. `large` tells of parts beyond ordinary sizes, `opaque` of roots, sines,
    floors and the like: their residues are drawn by their arguments, so that they prove equality
    but not difference.
    """

    def __init__(self, found: list[str], point: int, counted: frozenset[str] = frozenset()):
        self.tokens, self.point, self.counted = found, point, counted
        self.at = self.depth = self.letters = self.bars = 0
        self.large = self.opaque = False
        self.degree = formal(math.pi, r"\pi", point) * rational(Fraction(1, 180)) if ANGLES & {*found} else rational(1)

    def value(self) -> Value:
        value = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable("tokens left")
        return value

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if 0 <= self.at + ahead < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unreadable(f"wanted {wanted or 'a token'}, got {token or 'the end'}")
        self.at += 1
        return token

    def checked(self, value: Value) -> Value:
        """The value, if anything is known of it; notes its size."""
        ordinary = max(abs(value.near.real), abs(value.near.imag)) < LARGEST_ORDINARY  # false for not-a-number
        ordinary = ordinary and value.near == value.near
        self.large |= not ordinary
        if not ordinary and value.residue is None:
            raise Unreadable("no finite value")
        return value

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        total = self.product()
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product()
            total = self.checked(total + (term if sign == "+" else -term))
        self.depth -= 1
        return total

    def product(self) -> Value:
        start, value = self.at, self.signed()
        while True:
            token = self.peek()
            if token in PRODUCT:
                self.take()
                factor = self.divisor(start) if token == "/" else self.signed()
                value = self.checked(self.over(value, factor) if token in ("/", r"\div") else value * factor)
            elif self.starts_factor(token):
                value = self.checked(value * self.power())
            else:
                return value

    def divisor(self, start: int) -> Value:
        """What `/` divides by: `4R` in `abc/4R`; but `2` in `1/2x`, after a number."""
        numerator, value = self.tokens[start : self.at - 1], self.signed()
        while any(map(is_name, numerator)) and is_name(self.peek()) and self.peek() not in ACCENTS:
            value = self.checked(value * self.power())
        return value

    def over(self, top: Value, bottom: Value) -> Value:
        if self.opaque and abs(bottom.near) < 1e-12:
            raise Unreadable("a division by what may be 0")
        return top * bottom.inverse()

    def drawn(self, near: complex, name: str, *arguments: Value) -> Value:
        """The value of a function of which nothing is known but its arguments."""
        self.opaque = True
        keys = [argument.residue for argument in arguments]
        return Value(near) if None in keys else formal(near, name, keys)

    def starts_factor(self, token: str) -> bool:
        """Whether `token` starts a factor that follows without an operator.

        A number does so after a bracket, and before `^` after a letter. `x2`, `2 3`, and `2{3}`,
        which looks like 23, are not read.
        """
        if token == r"\frac" and self.peek(-1)[0].isdigit() and self.simple_fraction():
            raise Unreadable("a mixed number inside an expression")
        if token == "{" and next((t for t in self.tokens[self.at :] if t != "{"), "}")[0] in "0123456789.":
            return False
        if token[:1].isdigit():
            script = self.peek(-2) in ("^", "_")
            return self.peek(-1) in ENDS or (self.peek(1) == "^" and (script or not self.peek(-1)[0].isdigit()))
        if token == "|":
            return self.bars == 0
        known = token in FUNCTIONS or token in STEPS or token in SEVERAL
        return known or token in ("(", "[", "{", r"\frac", r"\sqrt", r"\binom") or is_name(token)

    def simple_fraction(self) -> bool:
        return all(t in "{}" or t[0].isdigit() for t in self.tokens[self.at + 1 : self.at + 7])

    def signed(self) -> Value:
        if self.peek() in ("+", "-"):
            return self.power() if self.take() == "+" else -self.power()
        return self.power()

    def power(self) -> Value:
        letters = self.letters
        base = self.atom()
        if self.peek() == "!":
            self.take()
            base = self.checked(self.factorial(base))
        if self.peek() == "^" and self.peek(1) == r"\circ":
            self.at += 2
            base = base * self.degree
        if self.peek() != "^":
            if self.peek() in ("!", "'"):
                raise Unreadable("a double factorial, or a derivative")
            return base
        self.take()
        exponent = self.argument(signed=True)
        self.large |= self.letters > letters and abs(exponent.near) > LARGEST_POWER_OF_LETTERS
        if self.peek() in ("^", "!", "'"):
            raise Unreadable("an unbraced tower")
        return self.raised(base, exponent)

    def factorial(self, value: Value) -> Value:
        self.large |= value.near.real > 100
        whole = value.exact is not None and value.exact.denominator == 1
        return factorial(value) if whole else self.drawn(complex(math.nan), "!", value)

    def raised(self, base: Value, exponent: Value) -> Value:
        value = raised(base, exponent)
        if value.residue is None:
            value = self.drawn(value.near, "power", base, exponent)
        return self.checked(value)

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
            return rational(Fraction(self.take().rstrip(".")))
        if is_name(token):
            return self.atom()
        raise Unreadable(token)

    def group(self) -> Value:
        letters, opening = self.letters, self.take()
        self.bars += opening == "|"
        value = self.sum()
        self.take(CLOSING[opening])
        if opening != "|":
            return value
        self.bars -= 1
        if value.exact is not None and self.letters == letters:
            return rational(abs(value.exact))
        return self.drawn(complex(abs(value.near)), "|", value)

    def atom(self) -> Value:
        token = self.peek()
        if token in CLOSING:
            return self.group()
        self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.checked(rational(Fraction(token.rstrip("."))))
        if is_name(token):
            return self.name(token)
        if token == r"\frac":
            top = self.argument()
            return self.checked(self.over(top, self.argument()))
        if token == r"\sqrt":
            return self.root()
        if token == r"\binom":
            top = self.argument()
            return self.checked(binomial(top, self.argument()))
        if token in STEPS:
            return self.step(token)
        if token in SEVERAL:
            return self.several(token)
        if token in FUNCTIONS:
            return self.function(token)
        raise Unreadable(token)

    def root(self) -> Value:
        degree = self.group() if self.peek() == "[" else rational(2)
        return self.raised(self.argument(), degree.inverse())

    def step(self, opening: str) -> Value:
        """A floor or a ceiling. With letters it is the value less a function of its fraction."""
        letters = self.letters
        value = self.sum()
        self.take(STEPS[opening])
        sign = 1 if opening == r"\lfloor" else -1
        if value.exact is None:
            return self.near_step(value, sign, self.letters == letters)
        floor = math.floor(sign * value.exact)
        if self.letters == letters:
            return rational(sign * floor)
        self.opaque = True
        over = formal(complex(sign * value.exact - floor), "floor", sign * value.exact - floor)
        return Value(complex(sign * floor), (value + -(rational(sign) * over)).residue)

    def near_step(self, value: Value, sign: int, constant: bool) -> Value:
        """A floor of a number in floating point, if it is clear; with letters, a drawn value."""
        near = sign * value.near.real
        if abs(value.near.imag) > 1e-9 or not abs(near) < 1e9 or (constant and abs(near - round(near)) < 1e-6):
            raise Unreadable("an unclear floor")
        floor = sign * math.floor(near)
        return rational(floor) if constant else self.drawn(complex(floor), f"floor {sign}", value)

    def several(self, name: str) -> Value:
        """A maximum, a minimum or a common divisor of values, whose order does not count."""
        letters, values = self.letters, self.arguments()
        if len(values) < 2:
            raise Unreadable("a maximum of one value")
        exact = [value.exact for value in values if value.exact is not None]
        ordered = name in (r"\max", r"\min")
        if (
            self.letters == letters
            and len(exact) == len(values)
            and (ordered or all(x.denominator == 1 for x in exact))
        ):
            return rational(SEVERAL[name](*(exact if ordered else map(int, exact))))
        self.opaque = True
        keys = [value.residue for value in values if value.residue is not None]
        if len(keys) < len(values):
            raise Unreadable("a maximum of what has no residue")
        near = SEVERAL[name](*(value.near.real for value in values)) if ordered else min(keys) % 1000
        return formal(complex(near), name, sorted(keys))

    def arguments(self) -> list[Value]:
        """The values in `(a, b)` or `\\{a, b\\}`."""
        opening = self.take()
        closing = {"(": ")", "[": "]", r"\{": r"\}"}.get(opening, "none")
        values = [self.sum()]
        while self.peek() == ",":
            self.take()
            values.append(self.sum())
        self.take(closing)
        return values

    def function(self, name: str) -> Value:
        base = power = None
        if self.peek() == "_" and name == r"\log":
            self.take()
            base = self.argument(signed=True)
        if self.peek() == "^":
            self.take()
            power = self.argument(signed=True)
        if power is not None and power.exact != 2:
            raise Unreadable("an inverse function or a reciprocal")
        argument = self.group() if self.peek() in CLOSING else self.bare_argument()
        near = FUNCTIONS[name](argument.near)
        near = near if base is None else near / cmath.log10(base.near)
        value = self.checked(self.drawn(near, name, argument, base or rational(10)))
        return value if power is None else value * value

    def bare_argument(self) -> Value:
        """The argument in `\\sin 2x`: factors up to a sign, a bracket or the next function."""
        value = self.power()
        while self.peek() not in FUNCTIONS and self.peek() not in ("(", "[") and self.starts_factor(self.peek()):
            value = self.checked(value * self.power())
        return value

    def name(self, token: str) -> Value:
        """The value of a constant, or of a letter at this point.

        Letters are positive at the first two points, negative at the third.
        """
        name = token + (self.accented() if token in ACCENTS else "")
        while self.peek() in ("_", "'"):
            name += self.subscript() if self.peek() == "_" else self.take()
        if name == r"\pi":
            return formal(math.pi, name, self.point)
        if name == "i":
            return Value(1j, I_RESIDUE)
        if name == "e":
            return formal(math.e, name, self.point)
        self.letters += 1
        if self.peek() == "(" and (name.rstrip("'") in CALLED or (self.peek(1)[:1].isdigit() and self.peek(2) == ")")):
            return self.call(name)
        if name in self.counted:
            return rational(whole_numbers(name)[self.point])
        share = zlib.crc32(f"{name} {self.point}".encode())
        if WIDE in self.counted:
            return rational(Fraction(share, 2**26) * (1 if self.point % 4 else -1))
        return rational(
            Fraction(1, 2) + Fraction(share, 2**32) if self.point < 2 else -Fraction(1, 4) - Fraction(share, 2**32)
        )

    def call(self, name: str) -> Value:
        """f(x), I(0): nothing is known of it but that equal arguments give equal values."""
        self.opaque = True
        keys = [value.residue for value in self.arguments()]
        if None in keys:
            raise Unreadable("a function of what has no residue")
        return formal(complex(0.5 + zlib.crc32(repr((name, keys)).encode()) / 2**32), name, keys)

    def accented(self) -> str:
        """What an accent stands over: a letter or a group that begins with one."""
        start = self.at
        if self.peek() == "{":
            while self.take() != "}":
                if self.peek() == "{":
                    raise Unreadable("an accent over braces")
        else:
            self.take()
            while self.tokens[start - 1] in (r"\angle", r"\triangle") and self.peek().isupper():
                self.take()
        taken = self.tokens[start : self.at]
        first = taken[1:2] if taken[0] == "{" else taken
        if not first or not (first[0].isalpha() or first[0] in LETTERS):
            raise Unreadable("an accent over a number")
        return "{" + "".join(taken).strip("{}") + "}"

    def subscript(self) -> str:
        start, depth = self.at, 0
        self.take("_")
        while True:
            depth += {"{": 1, "}": -1}.get(self.take(), 0)
            if depth == 0:
                return "".join(self.tokens[start : self.at])
