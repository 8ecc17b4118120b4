"""Turns in a text: as JSON, which is read, or as some program printed them, which is refused."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from rankrl.data.exact import read_json

LONGEST_LITERAL = 20_000
"""Most characters that Python's parser is given."""
ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=\w+)?\s*\)", re.DOTALL)
WHOLE = re.compile(r"[\[{].*[\]}]", re.DOTALL)
KEY = r"""['"](?:role|content|from|value)['"]\s*:"""
BEGINS = re.compile(rf"[\[\s]*\{{\s*{KEY}")
TURN = re.compile(rf"{KEY}.*?{KEY}", re.DOTALL)
CUT_OFF = re.compile(r"""\[\s*\{\s*['"]role['"]\s*:\s*['"](?:system|user|assistant)['"](?!.*\}\s*\])""", re.DOTALL)
"""How turns begin of which the end is missing."""
PAIRS = ({"role", "content"}, {"from", "value"})


def read_turns(text: str) -> list[Any] | None:
    """The turns that a whole text is as JSON; None for a text that is no turns.

    Raises ValueError, with the reason, for turns or a list of texts that were printed otherwise.
    """
    stripped = text.strip()
    array = ARRAY.fullmatch(stripped)
    inner = array[1].strip() if array else stripped
    if not WHOLE.fullmatch(inner):
        _require(not CUT_OFF.match(inner), text)
        return None
    found = None if array else _json(inner)
    if found is not None:
        _require(not _is_texts(found), text)
        return _turns(found)
    found = _literal(inner)
    printed = _is_texts(found) or _turns(found) is not None
    _require(not (printed or (found is None and BEGINS.match(inner) and TURN.search(inner))), text)
    return None


def _turns(value: Any) -> list[Any] | None:
    """The turns in a value: a list of them, one alone, or one of these under messages."""
    if isinstance(value, dict):
        inner = value.get("messages", value.get("conversations"))
        return _turns(inner) if isinstance(inner, list) else _turns([value] if _is_turn(value) else None)
    dicts = isinstance(value, list) and len(value) > 0 and all(isinstance(turn, dict) for turn in value)
    return value if dicts and any("role" in turn or _is_turn(turn) for turn in value) else None


def _is_turn(value: dict[Any, Any]) -> bool:
    return any(pair <= set(value) for pair in PAIRS)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _json(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return None


def _literal(text: str) -> Any:
    """What a text says as a literal of Python's; None if it is none. Nothing is evaluated."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know, as in LaTeX
            return ast.literal_eval(text) if len(text) <= LONGEST_LITERAL else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _require(fine: bool, text: str) -> None:
    if not fine:
        raise ValueError(
            f"its prompt is the text of a list that is no JSON of turns: {text[:60]!r}, allowed: text, or turns "
            "with role and content"
        )
