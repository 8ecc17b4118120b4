"""The gold answer of a row, in the shapes that data sets have. What no answer matches is refused.

Known shapes: a text or a number; a whole solution, whose answer follows its last `####` or stands
in its last box; a dict with `ground_truth`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from rankrl.data.exact import Number, number_text, read_json
from rankrl.reward.extract import last_boxed

LONGEST_ANSWER = 200  # characters
MOST_WORDS = 4
NO_ANSWER = {"", "proof", "notfound", "not found", "none", "null", "n/a", "nan", "see solution"}
PRINTED = re.compile(r"""[{\[(]\s*(['"]).*?\1\s*:""")
"""How the text of a dict begins that was printed, not read."""
SENTENCE = re.compile(r"\b(answer|solution|result)\b.*\b(is|are|equals)\b|\b(answer|solution)\s*[:=]", re.IGNORECASE)


def gold(value: Any) -> str:
    """The exact answer in the value of a row's key `answer`.

    Raises ValueError, with the reason, if there is none.
    """
    if isinstance(value, dict):
        return gold(_ground_truth(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"its answer is {_shown(value)}, allowed: text, a number, or a dict with ground_truth")
    return _number(value) if isinstance(value, int | float | Decimal) else _text(value)


def is_prose(answer: str) -> bool:
    """Whether an answer is longer than what a response could repeat exactly."""
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", " ", answer))
    return len(answer) > LONGEST_ANSWER or "\n\n" in answer or len(words) > MOST_WORDS


def _ground_truth(value: dict[Any, Any]) -> Any:
    if "ground_truth" not in value or isinstance(value["ground_truth"], dict):
        raise ValueError(f"its answer is {_shown(value)}, allowed: a dict with the answer under ground_truth")
    return value["ground_truth"]


def _number(value: Number) -> str:
    try:
        return number_text(value)
    except ValueError as error:
        raise ValueError(f"its answer is {str(value)[:40]}, {error}") from error


def _text(value: str) -> str:
    parsed = _parsed(value)
    if isinstance(parsed, dict):
        return gold(parsed)
    found = value.rpartition("####")[2] if "####" in value else value
    boxed = last_boxed(found)
    found = (found if boxed is None else boxed).strip()
    if found.lower() in NO_ANSWER:
        raise ValueError(f"its answer is {_shown(value)}, which is none")
    if is_prose(found) or "\n" in found or PRINTED.match(found) or SENTENCE.search(found):
        allowed = "the answer alone, or a solution that gives it after #### or in \\boxed{}"
        raise ValueError(f"its answer is {_shown(value)}, which no response can match, allowed: {allowed}")
    return found


def _parsed(text: str) -> Any:
    """What a text that looks like a JSON object says; None if it is none."""
    try:
        return read_json(text) if text.lstrip().startswith('{"') else None
    except ValueError:
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
