"""Values of YAML files and command lines, read by the types of the schema.

YAML 1.1 reads `off` as false, 0123 as 83 and 4e12345 as infinity. Where the schema has text, a
value is the text as it was typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.correction_section import Correction
from rankrl.recipe.key import as_keys_of, other_name
from rankrl.recipe.require import require
from rankrl.recipe.schema import Recipe

NULL, TEXT, MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
SHORT = (Correction, Advantage)
"""Sections for which the name of a method may stand."""
PATHS = re.compile(r"model\.path|data\.(train|evaluation|mixture\.origin\.[^.]+\.path)|deepspeed")
NOT_DECIMAL = re.compile(r"[-+]?0[\d_]+(?![\d_]*[.eE])|[-+]?\d[\d_]*(:[\d.]+)+")
"""What YAML 1.1 reads as a number to base 8 or 60."""
ANY_ESCAPED = re.compile(r"(\\*)\$\{")
ESCAPED = re.compile(r"(\\*)\$\{(?!oc\.)")
"""What begins an interpolation of OmegaConf. Of those in files and words, only the ones of its own
resolvers are meant, such as ${oc.env:HOME}: others are LaTeX."""
CUT = re.compile(r"[ \t]+#[^\s#][^\r\n\0]*")
"""The rest of a line behind a text, which reads like its end and not like a comment."""
DESCRIBED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Axes:
    """The type of axes over keys of `kind`: below a key, a list of what `kind` has there."""

    kind: Any


def typed_word(kind: Any, word: str) -> str:
    """A word KEY=VALUE whose value is YAML that means what the schema `kind` has under the key.

    Raises yaml.YAMLError, and ValueError for a number to another base.
    """
    key, _, value = word.partition("=")
    there = kind_of(kind, parts(key))
    if bare(there) is str:
        null = value == "null" and optional(there)
        return f"{key}=null" if null else f"{key}={yaml.serialize(_text(key, value), width=float('inf'))}"
    node = yaml.compose(value)
    return word if node is None else f"{key}={_serialized(key, there, node)}"


def typed_yaml(kind: Any, text: str) -> str:
    """A YAML document that means what the schema `kind` has for each key.

    Raises yaml.YAMLError, and ValueError for a number to another base.
    """
    node = yaml.compose(text)
    return text if node is None else _serialized("", kind, node)


def parts(key: str) -> list[str]:
    """The names in a dotted key: `a.b` and `a[b]` have two."""
    return [part for part in re.split(r"[.\[\]]", key) if part]


def kind_of(kind: Any, names: Sequence[str]) -> Any:
    """The type that the schema `kind` has below the keys `names`; None if it says nothing."""
    for name in names:
        kind = _below(bare(kind), name)
    return kind


def described(kind: Any) -> str:
    """What a value of this type is, in words."""
    plain, null = bare(kind), ", or null" if optional(kind) else ""
    if isinstance(plain, Axes):
        return "a list of values"
    if is_dataclass(plain):
        return f"a section with the keys {', '.join(as_keys_of(plain))}{null}"
    either = [DESCRIBED[part] for part in (float, str) if part in get_args(kind)] if plain in DESCRIBED else []
    return (" or ".join(either) or DESCRIBED.get(plain) or f"{plain}".removeprefix("typing.")) + null


def bare(kind: Any) -> Any:
    """The type X if `kind` is Optional[X], otherwise `kind`."""
    kinds = [part for part in get_args(kind) if part is not NoneType]
    return kinds[0] if optional(kind) else kind


def optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Key -> type. Overrides of an arm have the keys of a recipe."""
    hints = get_type_hints(kind)
    found = {other_name(option.name): hints[option.name] for option in fields(kind)}
    return {**found, "arms": dict[str, Recipe], "axes": Axes(Recipe)} if kind is Recipe else found


def _below(kind: Any, name: str) -> Any:
    """The type below the key `name` of `kind`, or of the elements of a list: "" is their name."""
    if isinstance(kind, Axes):
        return Axes(kind_of(kind.kind, parts(name))) if name else kind.kind
    if isinstance(kind, type) and is_dataclass(kind):
        return _types(kind).get(name)
    return next((part for part in reversed(get_args(kind)) if part is not ...), None)


def _serialized(key: str, kind: Any, node: yaml.Node) -> str:
    return yaml.serialize(_typed(key, kind, node, set()), width=float("inf"))


def _typed(key: str, kind: Any, node: yaml.Node, seen: set[int]) -> yaml.Node:
    """`node` with its text tagged as text. `seen`: collections that are done, which may recur."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(key, kind, node)
    written = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer] if node.start_mark.buffer else ""
    text = bare(kind) is str
    require(not text, key, written.strip(), "text", "in YAML this is a list or a mapping: put it in quotes")
    if id(node) in seen:
        return node
    seen.add(id(node))
    kind, dot = bare(kind), f"{key}." if key else ""
    if isinstance(node, yaml.MappingNode):
        node.value = [_pair(dot, kind, name, value, seen) for name, value in node.value]
    else:
        node.value = [_typed(key, _below(kind, ""), value, seen) for value in node.value]
    return node


def _pair(dot: str, kind: Any, name: yaml.Node, value: yaml.Node, seen: set[int]) -> tuple[yaml.Node, yaml.Node]:
    if name.tag == MERGE:  # `<<: *other` has the keys of this very section
        return name, _typed(dot.rstrip("."), kind, value, seen)
    named = is_dataclass(kind) or _key_type(kind) is str
    if isinstance(name, yaml.ScalarNode):
        name = _quoted(name.value) if named else _scalar(f"{dot}{name.value}", _key_type(kind), name)
    return name, _typed(f"{dot}{name.value}", _below(kind, name.value), value, seen)


def _key_type(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is dict else None


def _scalar(key: str, kind: Any, node: yaml.ScalarNode) -> yaml.ScalarNode:
    plain = bare(kind)
    if plain is str or plain in SHORT:
        null = node.tag == NULL and (optional(kind) or plain in SHORT)
        end = node.end_mark
        cut = CUT.match(end.buffer, end.pointer) if node.style is None and end.buffer else None
        fix = "YAML takes it for a comment: put the text in quotes, or a space after #"
        require(not cut, key, f"{node.value}{cut[0] if cut else ''}", "text without #", fix)
        return node if null else _text(key, node.value)
    number = plain in (int, float) or is_dataclass(plain)  # a rule may be a number
    other_base = number and node.style is None and NOT_DECIMAL.fullmatch(node.value)
    fix = "YAML reads a leading 0 as base 8 and a colon as base 60"
    require(not other_base, key, node.value, "a decimal number without leading zeros", fix)
    return node


def _text(key: str, typed: str) -> yaml.ScalarNode:
    """The node of a text as typed, with ~ expanded in a path."""
    return _quoted(ESCAPED.sub(_escape, os.path.expanduser(typed) if PATHS.fullmatch(key) else typed))


def _quoted(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(TEXT, text, style='"')


def literal(value: Any) -> Any:
    """`value`, a tree of plain values, in whose texts OmegaConf finds nothing to interpolate."""
    if isinstance(value, str):
        return ANY_ESCAPED.sub(_escape, value)
    if isinstance(value, Mapping):
        return {key: literal(part) for key, part in value.items()}
    return [literal(part) for part in value] if isinstance(value, list | tuple) else value


def _escape(found: re.Match[str]) -> str:
    return found[1] * 2 + r"\${"


def at(tree: Any, names: Sequence[str]) -> Any:
    """The value below the keys `names` of nested mappings, as far down as they go."""
    for name in names:
        if not (isinstance(tree, Mapping) and name in tree):
            return tree
        tree = tree[name]
    return tree
