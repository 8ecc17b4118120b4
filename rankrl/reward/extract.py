"""The answer in a response: the content of its last balanced \\boxed{...}, else its last line."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\\boxed *\{|\\.|[{}]", re.DOTALL)  # `\{` and `\}` are no braces
LONGEST = 20_000  # characters searched, from the end: a response cannot make extraction slow


def last_boxed(text: str) -> str | None:
    """The content of the last balanced `\\boxed{...}` (the one that closes last), or None.

    Takes one pass over the text.
    """
    text = text[-LONGEST:]
    opened: list[int | None] = []  # where a box's content starts; None for any other brace
    content = None
    for token in TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if token[0] != "{" else None)
        elif token[0] == "}" and opened:
            start = opened.pop()
            content = text[start : token.start()] if start is not None else content
    return content


def answer(text: str) -> tuple[str, bool]:
    """(answer, whether it was boxed).

    If nothing is boxed, the answer is the whole last non-empty line: numbers are not picked out.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip(), True
    lines = [line.strip() for line in text[-LONGEST:].splitlines() if line.strip()]
    return (lines[-1] if lines else ""), False
