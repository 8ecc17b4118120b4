"""The gold answer of a row, in the shapes that data sets have. What no answer matches is refused.

Known shapes: a text or a number; a whole solution, whose answer follows its last `####`, or stands
in its last box or between `<answer>` and `</answer>`; a dict with `ground_truth`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from rankrl.data.exact import Number, number_text, read_json
from rankrl.reward.equality import outside
from rankrl.reward.extract import last_boxed

LONGEST_WORDS = 200
"""Most characters of an answer with words beside each other; of formulas, what the grader reads."""
MOST_WORDS = 5
NO_ANSWER = {"", "proof", "notfound", "not found", "none", "null", "n/a", "nan", "see solution"}
SIGNS_ALONE = re.compile(r"[\s.…?!,;:_#'\"`=\-\u2013\u2014]*")
NUMBERS = re.compile(r"[-\d\s.,;:/()\[\]{}$]+")
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BOXED_BARE = re.compile(r"\$?\s*\\boxed(?:\s+|(?=[-\d]))(-?[\w.,/]+)\s*\$?")
QUOTED = re.compile(r"""(['"])([^'"]+)\1""")
ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
OBJECTS = "Decimal|Fraction|array|tensor|frozenset|OrderedDict|bytearray|Rational|Integer|Float|mpf|mpz"
PRINTED = [
    re.compile(pattern)
    for pattern in (
        r"""[{\[(]\s*(['"]).*?\1\s*:""",  # a dict
        r"""[\[({]+\s*[bru]?(['"]).*\1\s*,?\s*[\])}]+$""",  # a list, a set or a tuple of texts
        r"\(.*,\s*\)$",  # a tuple of one
        r"""b(['"]).*\1$""",
        r"<class |<.* object at 0x",
        rf".*\b(?:{OBJECTS}|(?:np|numpy|jnp|torch|sympy|decimal|fractions|datetime)\.\w+)\(",
        r"(?:set|dict|list|tuple)\((?:\)|[\[({])",
    )
]
"""How the text of an object begins that was printed, not read."""
SPECIAL = re.compile(
    r"<\|\w{2,}\|>|</[A-Za-z]\w*>|<(?:bos|eos|pad|unk|think|answer|(?:start|end)_of_turn)>|<\uff5c|\[/?INST\]|^<s>"
)
SENTENCE = re.compile(
    r"\b(answer|solution|result)\b.*\b(is|are|equals)\b|\b(answer|ans|solution|result)\s*[:=]", re.IGNORECASE
)
LABELLED = re.compile(r"#+\s|A:\s+[-+(\d\\$.](?!.*:)")
"""A heading, or the A of question and answer; not a ratio like `A: B = 2:1`."""


def gold(value: Any) -> str:
    """The exact answer in the value of a row's key `answer`; the same for what it has returned.

    Raises ValueError, with the reason, if there is none.
    """
    if isinstance(value, dict):
        return gold(_ground_truth(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"its answer is {_shown(value)}, allowed: text, a number, or a dict with ground_truth")
    return _number(value) if isinstance(value, int | float | Decimal) else _text(value)


def is_none(answer: str) -> bool:
    """Whether a text says that there is no answer, or nothing at all."""
    return answer.lower() in NO_ANSWER or SIGNS_ALONE.fullmatch(answer) is not None


def is_prose(answer: str) -> bool:
    """Whether an answer is longer than what a response could repeat, or the grader reads."""
    words = _words(answer)
    if words > MOST_WORDS or (words and len(answer) > LONGEST_WORDS):
        return True
    return outside(answer) and NUMBERS.fullmatch(answer) is None


def _words(answer: str) -> int:
    """How many words stand beside others, with blanks or numbers alone between them.

    The letters of formulas and the entries of lists do not.
    """
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+", "|", re.sub(r"\\\s|~", " ", answer))
    counts = [
        sum(len(word) > 1 and word.replace("'", "").isalpha() for word in part.split())
        for part in re.split(r"[^\w\s']+", plain)
    ]
    return sum(count for count in counts if count > 1)


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
    found = _unwrapped(_given(value))
    if is_none(found):
        raise ValueError(f"its answer is {_shown(value)}, which is none")
    if "\n" in found or _is_printed(found) or SENTENCE.search(found) or LABELLED.match(found) or is_prose(found):
        allowed = "the answer alone, or a solution that gives it after #### or in \\boxed{}"
        raise ValueError(f"its answer is {_shown(value)}, which no response can match, allowed: {allowed}")
    return found


def _given(solution: str) -> str:
    """What a solution gives as its answer: the whole text, if it marks none."""
    found = solution.rpartition("####")[2]
    found = (TAGGED.findall(found) or [found])[-1]
    while (boxed := last_boxed(found)) is not None:
        found = boxed
    return ENVIRONMENT.sub(lambda matched: " ".join(matched[0].split()), found).strip()


def _unwrapped(text: str) -> str:
    """A text without what can only stand around an answer: `= 17`, `'17'` and `\\boxed 17`."""
    boxed, quoted = BOXED_BARE.fullmatch(text), QUOTED.fullmatch(text)
    inner = boxed[1] if boxed else quoted[2].strip() if quoted else re.sub(r"^(?:=\s*)+", "", text)
    return text if inner == text else _unwrapped(inner)


def _is_printed(text: str) -> bool:
    """Whether a text is a printed object, has a model's special tokens, or a box that is broken."""
    broken = re.search(r"\\boxed(?![A-Za-z])", text)
    return broken is not None or SPECIAL.search(text) is not None or any(sign.match(text) for sign in PRINTED)


def _parsed(text: str) -> Any:
    """What a text that looks like a JSON object says; None if it is none."""
    try:
        return read_json(text) if re.match(r'\s*\{\s*"', text) else None
    except ValueError:
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
