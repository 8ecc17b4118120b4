"""How to read a run.yaml of an earlier rankrl, whose recipes and scales had fewer keys.

A key that a record lacks did not exist yet. It means the default that the version which added the
key gave it. So a key can be added to the dataclasses of recipe/ without a change in this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from rankrl.recipe.key import as_keys, other_name
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import Recipe, Rules

FORMAT = 1
"""The format of run.yaml that this version writes. A record that names no format has format 1. The
number goes up when a key changes its meaning or its place, not when a key is added."""
ADDED: dict[str, Any] = {
    "recipe.correction.method": "none",
    "recipe.warmup_offset": 0,
    "recipe.kl_schedule.horizon_share": lambda schedule: None if schedule.get("shape") == "adaptive" else 0.05,
    "rules.lr": {"rule": "equal_kl", "c": 4.0},
    "rules.max_norm": {"rule": "gradient_scale"},
    "rules.warmup": {"rule": "by_rank"},
}
"""Dotted key (recipe.gamma, rules.noise, scale.model.layers) -> what it means if a record lacks it;
`*` stands for any name of a mapping. A key without an entry means today's default. So if a default
changes after its key was added, its first value is written here. A function gives it from the
record of the key's section."""
SECTIONS: dict[str, Any] = {"recipe": Recipe, "rules": Rules, "scale": Scale}
"""Section of run.yaml -> its schema."""
NOT_RECORDED = {
    "recipe": (
        *("name", "ranks", "batch_sizes", "seeds", "steps", "arms", "axes", "rules", "stages"),
        *("equal_params", "equal_samples"),
    ),
    "scale": ("slurm", "max_sync_gap_nats"),
}
"""Section -> keys that do not change what a run computes, or that run.yaml has in another place."""


def recorded(section: str, value: Any) -> dict[str, Any]:
    """The part of a recipe, its rules or a scale that run.yaml has, as plain YAML values."""
    left_out = NOT_RECORDED.get(section, ())
    return {key: part for key, part in plain(value).items() if key not in left_out}


def plain(value: Any) -> Any:
    """`value` in the types that YAML reads: dataclasses as dicts, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = as_keys(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def completed(section: str, record: Any) -> Any:
    """A section of a record with every key of today's schema, in its order.

    A missing key without a default is left out. Keys that the schema does not know are kept unless
    they are null. A damaged record is returned as it is.
    """
    whole = _completed(record, SECTIONS[section], MISSING, section)
    return recorded(section, whole) if isinstance(whole, dict) else whole


def _completed(record: Any, kind: Any, default: Any, key: str, within: Any = None) -> Any:
    """`record`, or what MISSING means at this key, with every key below it filled in.

    `within`: the record of the section that has the key.
    """
    if record is MISSING:
        added = ADDED.get(key, default)
        record = added(within) if callable(added) else added
    if is_dataclass(record):  # a default; each of its keys may have an entry in ADDED
        record, kind, default = {}, type(record), record
    kind = _without_null(kind)
    if _is_section(kind) and isinstance(record, dict):
        return _completed_section(record, kind, default, key)
    if isinstance(record, dict):  # sorted, since the order of a mapping means nothing
        ordered = sorted(record.items(), key=lambda item: str(item[0]))
        return {name: _completed(value, _part(kind), MISSING, f"{key}.*") for name, value in ordered}
    if isinstance(record, list | tuple):
        return [_completed(value, _part(kind), MISSING, f"{key}.*") for value in record]
    return record


def _completed_section(record: dict[str, Any], kind: Any, default: Any, key: str) -> dict[str, Any]:
    rule = getattr(default, "rule", None)
    if record.get("rule", rule) != rule:  # another rule does not get the options of the default one
        default = MISSING
    known = {
        name: _completed(record.get(name, MISSING), part, getattr(default, field, own), f"{key}.{name}", record)
        for name, (field, part, own) in _keys(kind).items()
    }
    others = {name: value for name, value in record.items() if name not in known and value is not None}
    return {name: value for name, value in known.items() if value is not MISSING} | others


def unknown(section: str, record: Any) -> list[tuple[str, Any]]:
    """(dotted key, value) of each key that today's schema does not know; null ones are left out."""
    return list(_unknown(record, SECTIONS[section], section))


def _unknown(record: Any, kind: Any, key: str) -> Iterator[tuple[str, Any]]:
    kind = _without_null(kind)
    known = _keys(kind) if _is_section(kind) else None
    for name, value in record.items() if isinstance(record, dict) else ():
        if known is None or name in known:
            yield from _unknown(value, _part(kind) if known is None else known[name][1], f"{key}.{name}")
        elif value is not None:
            yield f"{key}.{name}", value


@cache
def _keys(kind: Any) -> dict[str, tuple[str, Any, Any]]:
    """Key of a section -> (field, type, default); the default is MISSING if there is none."""
    types = get_type_hints(kind)
    return {other_name(key.name): (key.name, types[key.name], _default(key)) for key in fields(kind)}


def _default(key: Field) -> Any:
    return key.default if key.default_factory is MISSING else key.default_factory()


def _is_section(kind: Any) -> bool:
    return is_dataclass(kind)


def _without_null(kind: Any) -> Any:
    """The type X if `kind` is Optional[X], otherwise `kind`."""
    kinds = [part for part in get_args(kind) if part is not NoneType]
    return kinds[0] if get_origin(kind) in (Union, UnionType) and len(kinds) == 1 else kind


def _part(kind: Any) -> Any:
    """The type of the values of a mapping or list; None if it is not stated."""
    return next((part for part in reversed(get_args(kind)) if part is not ...), None)


def first_difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, value there, value here) of the first difference; None if the trees are equal.

    A value is MISSING if its tree lacks the key.
    """
    if not isinstance(there, dict) or not isinstance(here, dict):
        same = there == here and isinstance(there, bool) == isinstance(here, bool)  # True == 1
        return None if same else (key, there, here)
    for name in [*here, *(name for name in there if name not in here)]:
        below = f"{key}.{name}" if key else str(name)
        if found := first_difference(there.get(name, MISSING), here.get(name, MISSING), below):
            return found
    return None
