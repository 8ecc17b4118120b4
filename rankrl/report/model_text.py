"""Text that a model wrote: how it is stored, shortened and shown. It is data and never executed."""

from __future__ import annotations

import re

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
"""Characters that command a terminal, turn the direction of writing around or cannot be seen. Line
feeds and tabs are not among them."""


def storable(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, longest: int) -> str:
    """`text` with at most `longest` characters of it: its start, and its end, where answers are."""
    if len(text) <= longest:
        return text
    start, end = longest - longest // 2, longest // 2
    return f"{text[:start]}\n[... {len(text) - longest:,} characters left out ...]\n{text[len(text) - end :]}"


def visible(text: str) -> str:
    """`text` for a terminal: what could command it, or hide something, is shown as its escape."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
