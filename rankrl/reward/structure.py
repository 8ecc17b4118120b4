"""The structure of an answer: leaf, list, bracketed group, union, matrix, equation or relation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rankrl.reward.number import quantity
from rankrl.reward.tidy import squeezed, unwrapped

Kind = Literal["leaf", "list", "group", "union", "matrix", "row", "equation", "relation"]
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(r"\\begin\{(?P<name>[pbB]?matrix|array)\}(?:\{[lcr|]*\})?(?P<body>.*)\\end\{(?P=name)\}", re.DOTALL)
NAME = r"(?:\\angle )?\\?[A-Za-z]+'*(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z](?:, ?[A-Za-z])*\))?"
LABEL = re.compile(rf"(?:{NAME}|\(\\?[A-Za-z]+(?:, ?\\?[A-Za-z]+)+\))", re.ASCII)
MEMBER = re.compile(rf"({NAME}) ?\\in(?![A-Za-z])(.*)", re.ASCII)
OPERATORS = (r"\leq", r"\geq", "<", ">", "=")
AND_OR = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
MOST_PARTS = 64


@dataclass(frozen=True)
class Node:
    """An answer or a part of one.

    `mark` holds the brackets of a group or the operators of a relation; `label` the name in front
    of `=` or `\\in`, or the variable of an interval.
    """

    kind: Kind
    text: str
    parts: tuple[Node, ...] = ()
    mark: str = ""
    label: str = ""


def read(text: str) -> Node:
    """The structure of a tidied answer.

    Raises ValueError for more than MOST_PARTS parts at one level.
    """
    text = text.strip()
    wrapped = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    if wrapped:
        return read(wrapped[1])
    member = MEMBER.fullmatch(text)
    if member:
        inside = read(member[2])
        return Node(inside.kind, inside.text, inside.parts, inside.mark, squeezed(member[1]))
    matrix = MATRIX.fullmatch(text)
    if matrix:
        return Node("matrix", text, tuple(_row(row) for row in _rows(matrix["body"])))
    return _list(text) or _relation(text) or _union(text) or _bracketed(text) or _signed(text) or Node("leaf", text)


def split(text: str, separators: tuple[str, ...]) -> list[tuple[str, str]]:
    """[(part, separator after it)], split outside all brackets and environments.

    Raises ValueError for more than MOST_PARTS parts.
    """
    depth, start, at, parts = 0, 0, 0, []
    while at < len(text):
        escaped = text[at : at + 2] in (r"\{", r"\}")
        character = text[at + escaped]
        depth += (character in OPEN or text.startswith(r"\begin", at)) - (
            character in CLOSE or text.startswith(r"\end", at)
        )
        found = next((s for s in separators if not escaped and text.startswith(s, at)), "") if depth == 0 else ""
        if found and not (found[-1].isalpha() and text[at + len(found) : at + len(found) + 1].isalpha()):
            parts.append((text[start:at].strip(), found))
            start = at = at + len(found)
            continue
        at += 1 + escaped
    parts.append((text[start:].strip(), ""))
    if len(parts) > MOST_PARTS:
        raise ValueError("too many parts")
    return parts


def _rows(body: str) -> list[str]:
    rows = [part for part, _ in split(body, (r"\\",))]
    return rows[:-1] if len(rows) > 1 and not rows[-1] else rows


def _row(row: str) -> Node:
    return Node("row", row, tuple(read(cell) for cell, _ in split(row, ("&",))))


def _list(text: str) -> Node | None:
    """Values beside each other: `1, 2`, `1; 2`, `1 or 2`, `1 and 2`; None if there is one value.

    A number with thousands separators is one value.
    """
    if quantity(text).exact is not None:
        return None
    plain = re.sub(r"\\text\{ *(and|or) *\}", r" \1 ", text)
    plain = re.sub(r",? *" + AND_OR.pattern, ",", plain)
    parts = [part for part, _ in split(plain, (",", ";"))]
    if len(parts) < 2 or not all(parts):
        return None
    nodes = [read(part) for part in parts]
    flat = [inner for node in nodes for inner in (node.parts if node.kind == "list" else (node,))]
    return Node("list", text, tuple(flat))


def _relation(text: str) -> Node | None:
    parts = split(text, OPERATORS)
    if len(parts) < 2:
        return None
    sides, signs = [part for part, _ in parts], [sign for _, sign in parts[:-1]]
    if not all(sides):
        return Node("leaf", text)
    if all(sign == "=" for sign in signs):
        label = squeezed(unwrapped(sides[0])) if LABEL.fullmatch(unwrapped(sides[0])) else ""
        return Node("equation", text, tuple(read(side) for side in sides), "=", label)
    return _interval(sides, signs) or Node("relation", text, tuple(read(side) for side in sides), " ".join(signs))


def _interval(sides: list[str], signs: list[str]) -> Node | None:
    """`x > 1` as (1, infinity), `1 \\leq x < 2` as [1, 2), each with the label x; else None."""
    if any(sign in (">", r"\geq") for sign in signs):
        flip = {">": "<", r"\geq": r"\leq", "<": ">", r"\leq": r"\geq"}
        sides, signs = sides[::-1], [flip.get(sign, sign) for sign in signs[::-1]]
    if any(sign not in ("<", r"\leq") for sign in signs):
        return None
    if len(sides) == 2:
        named_left = LABEL.fullmatch(sides[0]) is not None
        sides, signs = ([r"-\infty", *sides], ["<", *signs]) if named_left else ([*sides, r"\infty"], [*signs, "<"])
    if len(sides) != 3 or not LABEL.fullmatch(sides[1]):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Node("group", " ".join(sides), (read(sides[0]), read(sides[2])), brackets, squeezed(sides[1]))


def _union(text: str) -> Node | None:
    parts = split(text, (r"\cup",))
    return Node("union", text, tuple(read(part) for part, _ in parts)) if len(parts) > 1 else None


def _bracketed(text: str) -> Node | None:
    """The structure of `(a, b)`, `[a, b)` or `\\{a, b\\}`; None without brackets around it all.

    Brackets around one value are dropped, and the braces of a set make a list.
    """
    for opening, closings in ((r"\{", (r"\}",)), ("(", (")", "]")), ("[", (")", "]"))):
        for closing in closings:
            inner = text[len(opening) : -len(closing)].strip()
            if text.startswith(opening) and text.endswith(closing) and _balanced(inner):
                return _group(text, inner, opening, closing)
    return None


def _group(text: str, inner: str, opening: str, closing: str) -> Node | None:
    nodes = tuple(read(part) for part, _ in split(inner, (",", ";")))
    if opening == r"\{":
        return nodes[0] if len(nodes) == 1 else Node("list", text, nodes)
    if len(nodes) == 1:
        return nodes[0] if opening + closing in ("()", "[]") else None
    return Node("group", text, nodes, opening + closing)


def _balanced(inner: str) -> bool:
    """Whether all brackets in `inner` close in it, so that the two around it belong together."""
    depth = 0
    for character in inner:
        depth += (character in OPEN) - (character in CLOSE)
        if depth < 0:
            return False
    return depth == 0 and bool(inner)


def _signed(text: str) -> Node | None:
    """`a \\pm b` as a list of its two values; None unless there is exactly one `\\pm`."""
    if len(re.findall(r"\\pm(?![A-Za-z])", text)) != 1:
        return None
    both = [re.sub(r"\s*\\pm(?![A-Za-z])\s*", sign, text).strip() for sign in "+-"]
    return Node("list", text, tuple(Node("leaf", part.removeprefix("+")) for part in both))
