"""Values of rows as they were typed: JSON without rounding, and numbers as text."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

MOST_DIGITS = 2000
Number = int | float | Decimal


def read_json(text: str) -> Any:
    """What a JSON text says, with its numbers exact.

    Raises ValueError for what is no JSON, and for an object that has a key twice.
    """
    try:
        return json.loads(text, parse_float=Decimal, object_pairs_hook=_object)
    except (InvalidOperation, RecursionError) as error:
        raise ValueError(f"not to be read ({type(error).__name__})") from error


def number_text(value: Number) -> str:
    """A number with all its digits; whole ones without a point, as readers make floats of integers.

    A float is the shortest number that reads as it. Raises ValueError for infinity and what is no
    number.
    """
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not exact.is_finite():
        raise ValueError("no number")
    if max(exact.adjusted(), -int(exact.as_tuple().exponent)) > MOST_DIGITS:
        raise ValueError(f"a number of more than {MOST_DIGITS:,} digits")
    return str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {max(names, key=names.count)!r} twice")
    return found
