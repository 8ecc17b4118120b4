"""Text from run directories, made safe to show: what cannot be seen is written as an escape."""

from __future__ import annotations

import re

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula in a spreadsheet, also in full width."""


def visible(text: str, keep: str = "") -> str:
    r"""`text` with each character that does not print as an escape: a newline as \n.

    So no text moves the cursor, ends a line, hides a part of itself or turns the others around.
    Characters in `keep` stay, such as newlines and tabs where a text has lines of its own.
    """
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() or mark in keep else ascii(mark)[1:-1] for mark in text)


def csv_cell(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula: = + - @ have a ' in front."""
    shown = visible(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


def markdown(text: str) -> str:
    """`text` as Markdown that shows it as it is, in a sentence or in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", visible(text))
