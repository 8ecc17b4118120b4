"""Axes of the grid: dotted keys of a recipe, each with a list of values.

A point of the product of all axes is an arm, which is named after the point.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import combinations, product
from typing import Any

from rankrl.recipe.key import other_name
from rankrl.recipe.require import require
from rankrl.recipe.typed import parts

GRID = {
    *("ranks", "batch_sizes", "seeds", "arms", "axes", "name", "stages", "eval_seeds"),
    *("equal_params", "equal_samples"),
}
"""Keys that all arms share."""
LONGEST_TEXT = 24
LONGEST_NAME = 120
"""Most characters of an arm's name in a run id, which is the name of a directory."""
Point = dict[str, Any]
"""Dotted key -> its value on each axis."""


def flat_axes(axes: Any, key: str = "") -> dict[str, list[Any]]:
    """Dotted key -> list of values, of axes that are written with dotted keys or nested ones."""
    if key and isinstance(axes, list | tuple):
        return {key: list(axes)}
    allowed = "a list of values" if key else "keys of the recipe, each with a list of values"
    require(isinstance(axes, Mapping), f"axes.{key}".rstrip("."), axes, allowed)
    found: dict[str, list[Any]] = {}
    for name, below in axes.items():
        more = flat_axes(below, ".".join([*parts(key), *parts(str(name))]))
        require(not found.keys() & more.keys(), "axes", sorted(more), "keys that stand there once")
        found |= more
    return found


def check_axes(axes: dict[str, list[Any]]) -> None:
    """Raises ValueError for a key that cannot be an axis, and for values that are no scalars."""
    for key, values in axes.items():
        first = key.partition(".")[0]
        require(first != "scale", "axes", key, "keys of the recipe", "a sweep has one scale: run one sweep for each")
        require(first not in GRID, "axes", key, "keys other than the grid", f"{first} is the same for all arms")
        require(len(values) > 0, f"axes.{key}", values, "at least one value")
        whole = next((value for value in values if isinstance(value, list | dict)), None)
        require(whole is None, f"axes.{key}", whole, "numbers, texts, true, false and null", "or write arms")
    for one, other in combinations(sorted(axes), 2):
        require(not other.startswith(f"{one}."), f"axes.{other}", one, "axes of which none is a part of another")
        require(key_slug(one) != key_slug(other), "axes", [one, other], "keys with names of their own in run ids")


def check_values(key: str, values: list[Any]) -> None:
    """Raises ValueError if two values of an axis are the same, as the recipe reads them."""
    texts = [value_slug(value) for value in values]
    twice = next((value for value, text in zip(values, texts, strict=True) if texts.count(text) > 1), None)
    named = "a run is named after its grid point"
    require(len(set(texts)) == len(texts), f"axes.{key}", values, f"distinct values, and {twice!r} stands twice", named)


def check_unset(axes: Iterable[str], layer: dict[str, Any], where: str) -> None:
    """Raises ValueError if `layer`, which is described by `where`, sets a key that is an axis."""
    for key, value in leaves(layer):
        axis = next((axis for axis in axes if f"{key}.".startswith(f"{axis}.")), None)
        require(axis is None, f"{where}{key}", value, f"nothing: it is an axis (axes.{axis})", "drop one of the two")


def leaves(layer: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each value of nested mappings that is not null."""
    for name, value in layer.items():
        if isinstance(value, Mapping):
            yield from leaves(dict(value), f"{above}{name}.")
        elif value is not None:
            yield f"{above}{name}", value


def points(axes: dict[str, list[Any]]) -> list[Point]:
    """Every point of the product, the first axis outermost; one empty point without axes."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def nested(point: Point) -> dict[str, Any]:
    """A point as a layer of a recipe: {"rules.lr.value": 1} -> {"rules": {"lr": {"value": 1}}}."""
    layer: dict[str, Any] = {}
    for key, value in point.items():
        *above, last = key.split(".")
        at = layer
        for name in above:
            at = at.setdefault(name, {})
        at[last] = value
    return layer


def placed(section: Any, layer: dict[str, Any]) -> Any:
    """A dataclass with the values of `layer`, which has the nested keys of a recipe."""
    fields = {other_name(key): value for key, value in layer.items()}
    below = {name: value for name, value in fields.items() if isinstance(value, dict)}
    return replace(section, **fields | {name: placed(getattr(section, name), value) for name, value in below.items()})


def arm_name(arm: str, point: Point) -> str:
    """The name of an arm at a point, such as lr_0p0005-alpha_exponent_1; its own without axes.

    It depends on nothing else, so a value that is added to an axis renames no run.
    """
    name = "-".join(filter(None, (arm, _point_name(point))))
    allowed = f"at most {LONGEST_NAME} characters, since it stands in the run id"
    require(len(name) <= LONGEST_NAME, "axes", name, allowed, "fewer axes, or arms with names of your own")
    return name


def given_arm(arm: str, point: Point) -> str:
    """The name of the arm that a recipe gives, of an arm at a point of the axes; "" without one."""
    return arm.removesuffix(_point_name(point)).removesuffix("-") if point else arm


def _point_name(point: Point) -> str:
    return "-".join(f"{key_slug(key)}_{value_slug(value)}" for key, value in point.items())


def short_key(key: str) -> str:
    """The key as tables show it: rules.lr.value is lr."""
    return key.removeprefix("rules.").removesuffix(".value")


def key_slug(key: str) -> str:
    """The key as it stands in run ids."""
    return short_key(key).replace(".", "_")


def value_text(value: Any) -> str:
    """A value as a reader sees it: null, true, 0.0005, 1e-5, or the text that it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else _number(value)


def value_slug(value: Any) -> str:
    """A value as it stands in run ids, in letters, digits, _ and -; other values have other ones.

    A run id also names adapters of PEFT, which takes no dot: p is the decimal point. A text of
    other characters, or a long one, is shortened and has digits of its SHA-256.
    """
    text = value_text(value)
    if not isinstance(value, str):
        return text.replace(".", "p")
    plain = re.sub(r"[^A-Za-z0-9_]", "", text)[:LONGEST_TEXT]
    fine = plain == text and text not in ("", "null", "true", "false")
    return plain if fine else f"{plain}_{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _number(value: float) -> str:
    """The shortest text of a number: 1, 0.0005, 1e-5."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return re.sub(r"e\+?(-?)0*", r"e\1", repr(int(value) if whole else value))
