"""Units and counted nouns beside a value."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from rankrl.reward.number import number
from rankrl.reward.tidy import squeezed, unwrapped

UNIT_WORDS = {
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "dm": "decimeter decimetre",
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
    "qt": "quart",
    "pt": "pint",
    "cup": "cup",
    "acre": "acre",
    "ha": "hectare",
    "degree": "degree deg",
    "rad": "radian",
    "unit": "unit",
    "$": "dollar USD",
    "cent": "cent ¢",
    "€": "euro EUR",
    "£": "GBP",
    "¥": "yen JPY",
    "yuan": "yuan RMB CNY",
    "rupee": "rupee",
    "ruble": "ruble rouble",
    "%": "percent pct percentage",
    "Hz": "hertz",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "A": "ampere amp",
    "Ω": "ohm",
    "F": "farad",
    "C": "coulomb",
    "T": "tesla",
    "H": "henry",
    "Pa": "pascal",
    "K": "kelvin",
    "eV": "electronvolt",
    "erg": "erg",
    "dyn": "dyne",
    "cal": "calorie",
    "mol": "mole",
    "atm": "atmosphere",
    "Å": "angstrom",
}
PREFIXED = [("kMGmμnp", "J W V A F C T H Hz Pa eV N mol"), ("kMG", "Ω cal"), ("mμn", "s"), ("μn", "m"), ("μ", "g l")]
UNITS = {word + s: unit for unit, listed in UNIT_WORDS.items() for word in listed.split() for s in ("", "s")}
UNITS |= {unit: unit for unit in UNIT_WORDS}
UNITS |= {prefix + unit: prefix + unit for prefixes, units in PREFIXED for unit in units.split() for prefix in prefixes}
UNITS |= {"Kg": "kg", "KG": "kg", "Km": "km", "KM": "km"}
COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kWh": "kW h"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
AFTER = {"squared": 2, "cubed": 3}
WRAPPED = r"\\text\{(?:[^{}]|\{[^{}]*\})*\}"
POWER = r"\^(?:\{-?\d\}|-?\d)"
SUFFIX = re.compile(
    r"(?P<value>.*?[0-9A-Za-z}\])])"
    rf"(?P<tail>(?:\s*(?:{WRAPPED}|\\Omega|\\mu)(?:{POWER})?\s*(?:\\cdot|/)?)+"
    rf"|(?: [A-Za-z][A-Za-z./ ]+|(?:cm|mm|km|kg|ft|mi|mph))\s*(?:{POWER})?)",
    re.ASCII,
)
FRACTION = re.compile(r"\\frac\{(\\text\{[^{}]*\}[^{}]*)\}\{(\\text\{[^{}]*\}[^{}]*)\}$")
UNIT_TOKEN = re.compile(r"\s*(\^-?\d|[A-Za-zμΩÅ°%$€£¥¢]+|/|·)\s*")
NOUNS = re.compile(r"(?P<value>.*?[0-9}\])])\s*\\text\{(?P<nouns>[A-Za-z][A-Za-z' -]*)\}", re.ASCII)
NO_NOUN = (
    "hundred thousand million billion trillion dozen score half halve third quarter percent or and nor not no minus plus "
    "les less more than time over squared cubed base mod modulo if when except about is in to of under"
)
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = {word: Fraction(n) for n, word in enumerate(NUMBERS.split())}


@dataclass(frozen=True)
class Quantity:
    """A value as text, its exact value if it is a number, and its unit if it has one."""

    text: str
    exact: Fraction | None
    unit: str | None


def unit_named(name: str) -> str | None:
    """A unit in one spelling, or None for words that are no known unit.

    Reads, for instance, `square cm`, `cm^2`, `m s^{-2}`, `km/h` and `miles per hour`.
    """
    powers: Counter[str] = Counter()
    sign, pending, last = 1, 1, ""
    for word in _unit_words(name):
        if word in ("/", "per"):
            sign = -1
        elif word in POWERS:
            pending = POWERS[word]
        elif word in AFTER or (word[0] == "^" and last):
            powers[last] *= AFTER.get(word) or int(word[1:])
        else:
            unit = UNITS.get(word) or UNITS.get(word.lower() if len(word) > 2 else "")
            if unit is None:
                return None
            powers[unit], pending, last = powers[unit] + sign * pending, 1, unit
    return " ".join(unit if n == 1 else f"{unit}^{n}" for unit, n in sorted(powers.items())) or None


def _unit_words(name: str) -> list[str]:
    """The words, signs and powers of a unit; `?`, which is no unit, for anything else."""
    plain = re.sub(r"\^\{(-?\d)\}", r"^\1", name).replace(r"\text{", " ").replace(r"\Omega", "Ω")
    plain = re.sub(r"[{}()~]|\.(?=[\s)}]|$)", " ", plain.replace(r"\cdot", " ").replace("µ", "μ"))
    plain = re.sub(r"\b([kMG])\s+Ω", r"\1Ω", re.sub(r"(?:\\mu|μ)\s*", "μ", plain))
    found = UNIT_TOKEN.findall(plain)
    if "".join(found) != re.sub(r"\s", "", plain):
        return ["?"]
    return " ".join(COMPOUND.get(word, word) for word in found).replace("/", " / ").split()


def split_unit(text: str) -> tuple[str, str | None]:
    """(value, unit or None). A one-letter unit must be written `\\text{m}`: `5m` is a product."""
    text = FRACTION.sub(r"\1/\2", text.strip())
    for sign, unit in ((r"\$", "$"), ("€", "€"), ("£", "£"), ("¥", "¥"), ("%", "%")):
        if text.endswith(sign) and text != sign:
            return text[: -len(sign)].strip(), unit
        if sign != "%" and re.match(rf"[+-]?\s*{re.escape(sign)}", text):
            return text.replace(sign, "", 1).strip(), unit
    degrees = re.fullmatch(r"(.+?)\s*\^\s*\\circ\s*(?:\\text\{\s*)?([CF]?)(?:\s*\})?", text)
    if degrees and not re.search(r"[A-Za-z]|\^\\circ", degrees[1].replace(r"\frac", "")):
        return degrees[1], "degree" + degrees[2]
    match = SUFFIX.fullmatch(text)
    named = unit_named(match["tail"]) if match else None
    if (
        not match
        or not named
        or (r"\text" not in match["tail"] and "\\" in match["tail"] and not number(match["value"]))
    ):
        return text, None
    return match["value"].strip(), named


def quantity(text: str) -> Quantity:
    value, unit = split_unit(text)
    value = squeezed(symbols(value))
    return Quantity(value, number(value), unit)


def symbols(text: str) -> str:
    """The text with `\\text{...}` replaced by its content where that is no word."""
    if r"\text" not in text:
        return text
    plain = re.sub(r"\\text\{( ?[A-Za-z] ?|[^{}A-Za-z]*)\}", r" \1 ", text)
    return re.sub(r"\s+", " ", plain).strip()


def asked(text: str) -> Quantity | None:
    """The number that a gold answer asks for in words: `7 \\text{ distinct integers}`, `four`.

    None if there is none.
    """
    word = NUMBER_WORDS.get(unwrapped(text).lower())
    if word is not None:
        return Quantity(str(word), word, None)
    counted = NOUNS.fullmatch(re.sub(r" \(([A-Za-z -]+)\)$", r"\\text{\1}", text.strip()))
    if not counted or not nouns(counted["nouns"]):
        return None
    found = quantity(counted["value"])
    return found if found.exact is not None else None


def nouns(text: str) -> bool:
    """Whether words beside a number say what is counted.

    They must not change it, as `million` and `tenths` do.
    """
    said = [word.removesuffix("s") for word in text.lower().replace("-", " ").split()]
    return len(text) > 2 and not any(word in NO_NOUN.split() or word.endswith("th") for word in said)
