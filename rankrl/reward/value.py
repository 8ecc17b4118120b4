"""Numbers that are exact without growing: residues modulo a prime, beside floating point.

What is built of letters, rational numbers, i and pi by arithmetic and whole powers has a residue
modulo PRIME; a letter's is drawn by its name. Two such expressions that are equal have equal
residues, and two that differ have different ones, but for a chance near 1 in 2**100 (Schwartz and
Zippel). So `2^{65536}` costs as little as `4`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

PRIME = 2**127 - 39
I_RESIDUE = 14358368582948311658889158988663601352  # its square is -1
MOST_BITS = 2048
LARGEST_FACTORIAL = 5000


class Unreadable(ValueError):
    """Raised for text that is no expression of this grammar or has no value."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value: `near` in floating point, its `residue`, and the `exact` fraction while it is short.

    `residue` is None where roots, logarithms or angles come in. `near` may be infinite or
    not-a-number where the value is beyond a double's range.
    """

    near: complex
    residue: int | None = None
    exact: Fraction | None = None

    def __add__(self, other: Value) -> Value:
        residue = None if self.residue is None or other.residue is None else (self.residue + other.residue) % PRIME
        exact = None if self.exact is None or other.exact is None else short(self.exact + other.exact)
        return Value(self.near + other.near, residue, exact)

    def __mul__(self, other: Value) -> Value:
        residue = None if self.residue is None or other.residue is None else self.residue * other.residue % PRIME
        exact = None if self.exact is None or other.exact is None else short(self.exact * other.exact)
        return Value(self.near * other.near, residue, exact)

    def __neg__(self) -> Value:
        return Value(-self.near, None if self.residue is None else -self.residue % PRIME, _negative(self.exact))

    def inverse(self) -> Value:
        if self.residue == 0 or (self.residue is None and abs(self.near) < 1e-300):
            raise Unreadable("a division by 0")
        residue = None if self.residue is None else pow(self.residue, -1, PRIME)
        return Value(1 / self.near if self.near else complex(math.inf), residue, 1 / self.exact if self.exact else None)


def _negative(exact: Fraction | None) -> Fraction | None:
    return None if exact is None else -exact


def short(exact: Fraction) -> Fraction | None:
    """The fraction, or None if it is longer than MOST_BITS."""
    return exact if max(exact.numerator.bit_length(), exact.denominator.bit_length()) <= MOST_BITS else None


def rational(exact: Fraction | int) -> Value:
    exact = Fraction(exact)
    try:
        near = complex(exact)
    except OverflowError:
        near = complex(math.inf if exact > 0 else -math.inf)
    residue = exact.numerator if exact.denominator == 1 else exact.numerator * pow(exact.denominator, -1, PRIME)
    return Value(near, residue % PRIME, short(exact))


def formal(near: complex, *key: object) -> Value:
    """A value that nothing is known of but its name: its residue is drawn by `key`."""
    seed = repr(key)
    parts = [zlib.crc32(f"{i} {seed}".encode()) for i in range(4)]
    return Value(near, sum(part << 32 * i for i, part in enumerate(parts)) % PRIME)


def raised(base: Value, exponent: Value) -> Value:
    """base ** exponent: with a residue for whole exponents, else in floating point."""
    near = _near_power(base, exponent)
    if exponent.exact is None or exponent.exact.denominator != 1:
        return Value(near, *_perfect_root(base, exponent))
    n = exponent.exact.numerator
    if n <= 0 and base.residue == 0:
        raise Unreadable("0 to the power of 0, or less")
    exact = None
    if base.exact is not None:
        bits = max(base.exact.numerator.bit_length(), base.exact.denominator.bit_length())
        exact = base.exact**n if bits * abs(n) <= MOST_BITS else None
    return Value(near, None if base.residue is None else pow(base.residue, n, PRIME), exact)


def _near_power(base: Value, exponent: Value) -> complex:
    try:
        return base.near**exponent.near if base.near or exponent.near.real > 0 else complex(exponent.near == 0)
    except (OverflowError, ZeroDivisionError, ValueError):
        return complex(math.nan)


def _perfect_root(base: Value, exponent: Value) -> tuple[int | None, Fraction | None]:
    """(residue, exact) of base ** (1 / n) where it is rational, else (None, None)."""
    if base.exact is None or exponent.exact is None or exponent.exact.numerator != 1 or base.exact < 0:
        return None, None
    parts = [_whole_root(part, exponent.exact.denominator) for part in base.exact.as_integer_ratio()]
    if parts[0] is None or parts[1] is None:
        return None, None
    root = rational(Fraction(parts[0], parts[1]))
    return root.residue, root.exact


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    elif number.bit_length() > 512 or degree > 512:
        return None
    else:
        root = round(number ** (1 / degree)) if number < 1 << 1000 else 0
    return root if root**degree == number else None


def whole(value: Value, largest: int) -> int:
    """The value as an integer from 0 to `largest`. Raises Unreadable if it is none."""
    if value.exact is None or value.exact.denominator != 1 or not 0 <= value.exact <= largest:
        raise Unreadable("not a whole number in range")
    return value.exact.numerator


def factorial(value: Value) -> Value:
    """n!, by its residue alone where it is long."""
    n = whole(value, LARGEST_FACTORIAL)
    return rational(math.factorial(n)) if n <= 170 else Value(complex(math.inf), _factorial_residue(n))


@lru_cache(maxsize=1024)
def _factorial_residue(n: int) -> int:
    residue = 1
    for k in range(2, n + 1):
        residue = residue * k % PRIME
    return residue


def binomial(top: Value, bottom: Value) -> Value:
    """The binomial coefficient: `top` may be anything, `bottom` is a whole number."""
    k = whole(bottom, LARGEST_FACTORIAL)
    if top.exact is not None and top.exact.denominator == 1 and 0 <= top.exact <= LARGEST_FACTORIAL:
        return rational(math.comb(top.exact.numerator, k))
    product = rational(1)
    for j in range(whole(bottom, 100)):
        product = product * (top + rational(-j)) * rational(Fraction(1, j + 1))
    return product
