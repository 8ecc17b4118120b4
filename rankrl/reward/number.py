"""Exact values of numbers, and the units beside them.

Numbers are integers, decimals, fractions, mixed numbers, scientific notation and repeating
decimals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rankrl.reward.tidy import squeezed, unwrapped

LARGEST_EXPONENT = 30
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
UNIT_WORDS = {
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound lbs",
    "oz": "ounce",
    "t": "ton tonne",
    "s": "second sec",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "l": "liter litre L",
    "ml": "milliliter millilitre mL",
    "gal": "gallon",
    "degree": "degree deg",
    "rad": "radian",
    "unit": "unit",
    "$": "dollar USD",
    "cent": "cent",
    "€": "euro EUR",
    "%": "percent",
    "Hz": "hertz",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "K": "kelvin",
}
UNITS = {word + s: unit for unit, listed in UNIT_WORDS.items() for word in listed.split() for s in ("", "s")}
UNITS |= {unit: unit for unit in UNIT_WORDS} | {"mph": "mi/h", "kph": "km/h"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
SUFFIX = re.compile(
    r"(?P<value>.*?[0-9A-Za-z}})])"
    r"(?:\s*\\text\{(?P<wrapped>[^{}]*)\}| (?P<bare>[A-Za-z][A-Za-z./ ]+)|(?P<near>cm|mm|km|kg|ft|mi|mph))"
    r"\s*(?:\^\{?(?P<power>[23])\}?)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Quantity:
    """A value as text, its exact value if it is a number, and its unit if it has one."""

    text: str
    exact: Fraction | None
    unit: str | None


def number(text: str) -> Fraction | None:
    """The exact value of a number in one of FORMS, with at most one sign in front, else None."""
    plain = squeezed(text)
    negative = plain.startswith("-")
    plain = plain[1:].lstrip() if plain.startswith(("-", "+")) else plain
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


def unit_named(name: str, power: int = 1) -> str | None:
    """A unit in one spelling, or None for words that are no known unit.

    Reads, for instance, `square cm`, `cm^2`, `km/h` and `miles per hour`. `power` is an exponent
    that stood outside `name`.
    """
    name = re.sub(r"\^\{?([23])\}?", r" ^\1", " ".join(name.split())).strip(" .")
    over = re.split(r"\s*/\s*|\s+per\s+", name)
    if len(over) == 2:
        parts = [unit_named(part) for part in over]
        return "/".join(p for p in parts if p) if all(parts) and power == 1 else None
    tokens = name.replace(".", "").split()
    if tokens and tokens[-1].startswith("^"):
        power, tokens = int(tokens[-1][1]), tokens[:-1]
    if len(tokens) == 2 and tokens[0].lower() in POWERS:
        power, tokens = POWERS[tokens[0].lower()], tokens[1:]
    if len(tokens) != 1:
        return None
    unit = UNITS.get(tokens[0]) or UNITS.get(tokens[0].lower())
    return unit if unit is None or power == 1 else f"{unit}^{power}"


def split_unit(text: str) -> tuple[str, str | None]:
    """(value, unit or None). A one-letter unit must be written `\\text{m}`: `5m` is a product."""
    text = text.strip()
    for sign, unit in ((r"\$", "$"), ("€", "€"), ("£", "£"), ("¥", "¥"), ("%", "%")):
        if text.endswith(sign) and text != sign:
            return text[: -len(sign)].strip(), unit
        if sign != "%" and re.match(rf"[+-]?\s*{re.escape(sign)}", text):
            return text.replace(sign, "", 1).strip(), unit
    degrees = re.fullmatch(r"(.+?)\s*\^\s*\\circ\s*(?:\\text\{\s*)?([CF]?)(?:\s*\})?", text)
    if degrees:
        return degrees[1], "degree" + degrees[2]
    match = SUFFIX.fullmatch(text)
    if not match:
        return text, None
    named = unit_named(match["wrapped"] or match["bare"] or match["near"] or "", int(match["power"] or 1))
    return (match["value"].strip(), named) if named else (text, None)


def quantity(text: str) -> Quantity:
    value, unit = split_unit(text)
    value = squeezed(unwrapped(value))
    return Quantity(value, number(value), unit)
