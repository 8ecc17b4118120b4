"""The names of a recipe's keys: as users write them, and as fields of dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from keyword import iskeyword
from typing import Any, get_type_hints


def other_name(name: str) -> str:
    """The field of a key, or the key of a field: a keyword of Python has an underscore as a field.

    So `lambda` gives `lambda_`, and `lambda_` gives `lambda`; any other name stays.
    """
    if iskeyword(name):
        return f"{name}_"
    return name[:-1] if name.endswith("_") and iskeyword(name[:-1]) else name


def as_key(dotted: str) -> str:
    """The key, such as critic.lambda, of a dotted path of fields."""
    return ".".join(map(other_name, dotted.split(".")))


def as_fields(kind: Any, layer: Any) -> Any:
    """`layer`, which has the keys of a section, with the names of the fields of dataclass `kind`.

    Names in mappings that are no section, such as those of arms, stay.
    """
    if not (isinstance(kind, type) and is_dataclass(kind) and isinstance(layer, Mapping)):
        return layer
    named = {other_name(name) if isinstance(name, str) else name: value for name, value in layer.items()}
    return {name: as_fields(_types(kind).get(name), value) for name, value in named.items()}


def as_keys(section: Any) -> dict[str, Any]:
    """The values of a dataclass by key; of the class itself, its plain defaults."""
    return {other_name(option.name): getattr(section, option.name) for option in fields(section)}


def as_keys_of(kind: Any) -> list[str]:
    """The keys of a section's dataclass."""
    return [other_name(option.name) for option in fields(kind)]


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
