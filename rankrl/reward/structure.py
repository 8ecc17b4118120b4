"""The structure of an answer: leaf, list, bracketed group, matrix, equation, relation, and more."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import Literal

from rankrl.reward.names import LABEL, NAME, label
from rankrl.reward.tidy import squeezed, unwrapped, wordy
from rankrl.reward.units import quantity

Kind = Literal[
    "leaf", "list", "group", "set", "matrix", "row", "equation", "relation", "builder", "congruence", "either"
]
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(
    r"(?P<scalar>[^=<>,&]*?)\\begin\{(?P<name>[pbB]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(?P<body>.*)\\end\{(?P=name)\}",
    re.DOTALL,
)
CASES = re.compile(
    r"(?:\\begin\{cases\}|\\\{ ?\\begin\{(?:array|aligned)\}(?:\{[lcr| ]*\})?)(?P<body>.*)\\end\{(?:cases|array|aligned)\}",
    re.DOTALL,
)
MEMBER = re.compile(rf"({NAME}) ?\\in(?![A-Za-z])(.*)", re.ASCII)
BUILDER = re.compile(rf"\\\{{ ?(?P<name>{NAME})(?P<domain> ?\\in ?[^|:]*)? ?(?:\||:) ?(?P<condition>.*)\\\}}", re.ASCII)
CONGRUENCE = re.compile(r"(.+?)\\equiv(?![A-Za-z])(.+?),? *\(?\\mod\{(\w+)\}\)?", re.ASCII)
POINT = re.compile(r"([A-Z](?:'|_\{?\w\}?)?) ?(\(.*\))", re.ASCII)
QUALIFIED = re.compile(r"(?P<value>.*?[^ ,;]),?;? *(?P<words>\b(?:for|where)(?: |\})[^=<>+*/^0-9]*)", re.ASCII)
QUALIFIER = re.compile(
    r"(?:for|where)(?: (?:all|any|every|each|some|arbitrary|is|an|a|the|real|whole|positive|constants?|numbers?|integers?|"
    r"values?|of|[A-Za-z]|\\in|\\reals|\\?[A-Za-z]))+",
    re.ASCII,
)
DOMAINS = ("positive", "whole", "integer", "real")
OPERATORS = (r"\leq", r"\geq", r"\neq", "<", ">", "=")
FLIP = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
SET_OPERATIONS = (r"\cup", r"\cap", r"\setminus")
SIGN = re.compile(r"\s*\\(pm|mp)(?![A-Za-z])\s*")
AND_OR = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
REAL_LINE = re.compile(
    r"\\reals|(?:all|the set of(?: all)?|any|every|set of) reals?(?: numbers?)?|all reals", re.IGNORECASE
)
MOST_PARTS = 64
MOST_SIGNS = 4


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
        return _wrapped(text, wrapped[1])
    if "\\" not in text and text.isalnum() and not text.isalpha():
        return Node("leaf", text)
    if REAL_LINE.fullmatch(unwrapped(text)):
        return Node("group", text, (Node("leaf", r"-\infty"), Node("leaf", r"\infty")), "()")
    return (
        _special(text)
        or _list(text)
        or _approximation(text)
        or _relation(text)
        or _set(text)
        or _bracketed(text)
        or _signed(text)
        or Node("leaf", text)
    )


def _wrapped(text: str, inner: str) -> Node:
    """`\\text{...}`: a word stays one, `\\text{IV}` is no product."""
    real = REAL_LINE.fullmatch(inner.strip())
    if wordy(inner.strip(" .?!")) and not AND_OR.search(inner) and not real:
        return Node("leaf", text, mark="words")
    return read(inner)


def _special(text: str) -> Node | None:
    """A membership, a set by its condition, a matrix, a system, a congruence or a named point."""
    member = MEMBER.fullmatch(text) if r"\in" in text else None
    if member:
        inside = read(member[2])
        return replace(inside, label=squeezed(member[1]))
    builder = BUILDER.fullmatch(text) if text.startswith(r"\{") else None
    if builder:
        domain = squeezed(builder["domain"] or "").removeprefix(r"\in").strip().replace(r"\reals", "")
        return Node("builder", text, (read(builder["condition"]),), domain, squeezed(builder["name"]))
    cases = CASES.fullmatch(text) if r"\begin" in text else None
    if cases:
        rows = [row.rstrip(",; ").replace("&=", "=").replace("&", " , ") for row in _rows(cases["body"])]
        return _values(text, [read(row) if "," not in row else Node("row", row, tuple(_parts(row))) for row in rows])
    matrix = MATRIX.fullmatch(text) if r"\begin" in text else None
    if matrix:
        return _matrix(text, matrix["scalar"].strip(), matrix["body"])
    congruence = CONGRUENCE.fullmatch(text) if r"\equiv" in text else None
    if congruence:
        return Node("congruence", text, tuple(read(side) for side in congruence.groups()[:2]), congruence[3])
    point = POINT.fullmatch(text) if text[:1].isupper() and text.endswith(")") else None
    if point and _balanced(point[2][1:-1]):
        inside = read(point[2])
        return replace(inside, label=squeezed(point[1])) if inside.kind == "group" else None
    return None


def qualified(text: str) -> tuple[str, str]:
    """(answer, domain): `for all real numbers t` at its end is left out; the domain is `real`."""
    found = QUALIFIED.fullmatch(text) if "for" in text or "where" in text else None
    said = " ".join(re.sub(r"\\text|[{}]", " ", found["words"]).split()).strip(" .") if found else ""
    if not found or not QUALIFIER.fullmatch(said):
        return text, ""
    return found["value"].removesuffix(r"\text{").strip(" ,;"), next((word for word in DOMAINS if word in said), "")


def both_notations(text: str) -> Node | None:
    """`x > 1 : (1, \\infty)`, an inequality and its interval: either is the answer."""
    parts = [part for part, _ in split(text, (":",))]
    if len(parts) != 2 or not re.search(r"[<>]|\\[lg]eq", parts[0]) or parts[1][:1] not in ("(", "["):
        return None
    return Node("either", text, (read(parts[0]), read(parts[1])))


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


def _matrix(text: str, scalar: str, body: str) -> Node | None:
    """A matrix. A number in front is multiplied into its cells."""
    if not scalar:
        return Node("matrix", text, tuple(_row(row) for row in _rows(body)))
    scalar = scalar.removesuffix(r"\cdot").removesuffix("*").strip()
    if r"\begin" in scalar or not _balanced(scalar) or len(split(scalar, ("+",))) > 1 or "-" in scalar[1:]:
        return None
    scalar = "-1" if scalar == "-" else scalar
    rows = [[cell for cell, _ in split(row, ("&",))] for row in _rows(body)]
    made = [tuple(Node("leaf", f"({scalar})({cell})") for cell in row) for row in rows]
    return Node("matrix", text, tuple(Node("row", text, row) for row in made))


def _parts(text: str) -> list[Node]:
    return [read(re.sub(r"^\\text\{ ?if ?\}", "", part)) for part, _ in split(text, (",",)) if part]


def _values(text: str, nodes: list[Node]) -> Node:
    """A list. Lists in it, such as `\\pm 1`, are opened."""
    flat = [inner for node in nodes for inner in (node.parts if _open(node) else (node,))]
    if len(flat) > MOST_PARTS:
        raise ValueError("too many parts")
    return Node("list", text, tuple(flat))


def _open(node: Node) -> bool:
    """Whether a part is a list of its own, and no set."""
    return node.kind == "list" and not node.text.startswith((r"\{", "{"))


def _list(text: str) -> Node | None:
    """Values beside each other: `1, 2`, `1; 2`, `1 or 2`, `1 and 2`; None if there is one value.

    A number with thousands separators is one value.
    """
    if not ("," in text or ";" in text or AND_OR.search(text)) or quantity(text).exact is not None:
        return None
    plain = re.sub(r"\\text\{[ ,;]*(and|or)[ ,]*\}", r" \1 ", text)
    plain = re.sub(r"\\text\{ *([,;]) *\}", r"\1", plain)
    plain = re.sub(r"[,;]? *" + AND_OR.pattern, ",", plain)
    found = split(plain, (",", ";"))
    parts = [part for part, _ in found]
    if len(parts) < 2 or not all(parts):
        return None
    if {separator for _, separator in found[:-1]} == {",", ";"}:
        return Node("list", text, tuple(_entry(part) for part, _ in split(plain, (";",))))
    return _values(text, [read(part) for part in parts])


def _entry(text: str) -> Node:
    """An entry of `1,2; 3,4`, where commas part the values of one entry: it is a tuple."""
    node = read(text)
    plain = node.kind == "list" and not any(part.label for part in node.parts)
    return Node("group", text, node.parts, "()") if plain else node


def _approximation(text: str) -> Node | None:
    """`2/3 \\approx 0.67`: either side is the answer, if one rounds the other.

    `x \\approx 5` is `x = 5`.
    """
    if r"\approx" not in text:
        return None
    sides = [part for part, _ in split(text, (r"\approx",))]
    if len(sides) != 2 or not sides[1] or any(operator in sides[1] for operator in OPERATORS):
        return None
    if not sides[0]:
        return read(sides[1])
    if label(sides[0]):
        return _relation(f"{sides[0]}={sides[1]}")
    equal = split(sides[0], ("=",))
    nodes = (read(equal[-1][0]), read(sides[1]))
    either = Node("either", text, nodes, r"\approx")
    if len(equal) == 1:
        return either
    return Node("equation", text, (*(read(side) for side, _ in equal[:-1]), either), "=", label(equal[0][0]))


def _relation(text: str) -> Node | None:
    parts = split(text, OPERATORS) if any(operator in text for operator in OPERATORS) else []
    if len(parts) < 2:
        return None
    sides, signs = [part for part, _ in parts], [sign for _, sign in parts[:-1]]
    if not all(sides):
        return Node("leaf", text)
    if all(sign == "=" for sign in signs):
        return Node("equation", text, tuple(read(side) for side in sides), "=", label(sides[0]))
    return _interval(sides, signs) or Node("relation", text, tuple(read(side) for side in sides), " ".join(signs))


def _interval(sides: list[str], signs: list[str]) -> Node | None:
    """`x > 1` as (1, infinity), `1 \\leq x < 2` as [1, 2), each with the label x; else None.

    `-x > -1` is `x < 1`.
    """
    if len(sides) == 2 and sides[0].startswith("-") and LABEL.fullmatch(sides[0][1:].strip()):
        sides, signs = [sides[0][1:].strip(), f"-({sides[1]})"], [FLIP.get(signs[0], signs[0])]
    if any(sign in (">", r"\geq") for sign in signs):
        sides, signs = sides[::-1], [FLIP.get(sign, sign) for sign in signs[::-1]]
    if any(sign not in ("<", r"\leq") for sign in signs):
        return None
    if len(sides) == 2:
        named_left = LABEL.fullmatch(sides[0]) is not None
        sides, signs = ([r"-\infty", *sides], ["<", *signs]) if named_left else ([*sides, r"\infty"], [*signs, "<"])
    if len(sides) != 3 or not LABEL.fullmatch(sides[1]):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Node("group", " ".join(sides), (read(sides[0]), read(sides[2])), brackets, squeezed(sides[1]))


def _set(text: str) -> Node | None:
    """A union, intersection or difference. Of several operations, unions bind last."""
    if not any(word in text for word in (*SET_OPERATIONS, r"\reals")):
        return None
    plain = re.sub(r"(?<=\\reals) *- *(?=\\\{)", r"\\setminus ", text)
    for operation in SET_OPERATIONS:
        parts = split(plain, (operation,))
        if len(parts) > 1:
            return Node("set", text, tuple(read(part) for part, _ in parts), operation)
    return None


def _bracketed(text: str) -> Node | None:
    """The structure of `(a, b)`, `[a, b)` or `\\{a, b\\}`; None without brackets around it all.

    Brackets around one value are dropped, and the braces of a set make a list; so do braces without
    backslashes around several values.
    """
    for opening, closings in ((r"\{", (r"\}",)), ("(", (")", "]")), ("[", (")", "]")), ("{", ("}",))):
        for closing in closings:
            inner = text[len(opening) : -len(closing)].strip()
            if text.startswith(opening) and text.endswith(closing) and _balanced(inner):
                return _group(text, inner, opening, closing)
    return None


def _group(text: str, inner: str, opening: str, closing: str) -> Node | None:
    nodes = tuple(read(part) for part, _ in split(inner, (",", ";")))
    if len(nodes) == 1:
        single = opening + closing in ("()", "[]", r"\{\}", "{}")
        return nodes[0] if single else None
    if opening in (r"\{", "{"):
        return _values(text, [*nodes])
    if any(map(_open, nodes)):
        choices = itertools.product(*(node.parts if _open(node) else (node,) for node in nodes))
        return _values(
            text, [Node("group", text, choice, opening + closing) for choice in itertools.islice(choices, 65)]
        )
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
    """`a \\pm b` as a list of its two values; several `\\pm` vary alone, with `\\mp` together.

    None without `\\pm`, and for more than MOST_SIGNS of them.
    """
    found = SIGN.findall(text) if r"\pm" in text else []
    if not 0 < len(found) <= MOST_SIGNS:
        return None
    together = "mp" in found
    choices = [("+",) * len(found), ("-",) * len(found)] if together else itertools.product("+-", repeat=len(found))
    values = []
    for choice in choices:
        signs = iter(choice)
        made = SIGN.sub(lambda m, signs=signs: _sign(m[1], next(signs)), text)  # type: ignore[misc]
        values.append(Node("leaf", made.strip().removeprefix("+")))
    return Node("list", text, tuple(values))


def _sign(command: str, sign: str) -> str:
    return sign if command == "pm" else {"+": "-", "-": "+"}[sign]
