"""Text that a model wrote, or a process: how it is stored and shortened. It is never executed."""

from __future__ import annotations


def storable(text: str) -> str:
    """`text` as UTF-8 can hold it: a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, longest: int) -> str:
    """`text` with at most `longest` characters of it: its start, and its end, where answers are."""
    if len(text) <= longest:
        return text
    start, end = longest - longest // 2, longest // 2
    return f"{text[:start]}\n[... {len(text) - longest:,} characters left out ...]\n{text[len(text) - end :]}"
