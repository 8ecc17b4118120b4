"""The data sets that a mixture may draw from: for each, where it is and how rows become questions.

Columns, sizes and licences are as on the hub's cards, see docs/data.md. Commits are not written
here: `Origin.revision` pins one, and the mixture's card records the one that was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from rankrl.data.exact import number_text
from rankrl.data.gold import gold, is_none
from rankrl.data.text import bare
from rankrl.data.turns import prompt_of
from rankrl.recipe.require import require
from rankrl.reward.extract import last_boxed

OPTION = re.compile(r"\(?\b[A-Ea-e]\b\)?[.:]?")
OPTIONS = re.compile(r"\(\s*B\s*\)|\bB\s*[).:]|\\text(?:bf|rm)?\{\(?B")
FIGURE = re.compile(r"!\[[^\]]*\]\(|https?://|<image")
Row = dict[str, Any]


class Question(NamedTuple):
    prompt: str
    answer: str
    level: str = ""


@dataclass(frozen=True)
class Source:
    """A data set of the hub. `parts` are (config, split) pairs; `extra` columns are optional."""

    hub: str
    parts: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    question: Callable[[Row], Question | str]
    """A pure function from a row to its question, or to the reason why it has none."""
    licence: str
    extra: tuple[str, ...] = ()


def text(value: Any) -> str:
    """A value as text, without spaces around it; "" for None.

    Answers are text, integers (AIME) or floats (which readers make of integers beside nulls).
    """
    if isinstance(value, float) and isfinite(value):
        return number_text(value)
    return "" if value is None else str(value).strip()


def said(turns: list[Row] | None, *roles: str) -> str:
    """The text of the last turn by one of `roles`, or "" if there is none.

    Turns are read in both usual formats: role and content, or from and value.
    """
    found = [t.get("content", t.get("value")) for t in turns or [] if t.get("role", t.get("from")) in roles]
    return text(found[-1]) if found else ""


def gsm8k(row: Row) -> Question:
    _, mark, answer = text(row["answer"]).rpartition("####")
    return Question(text(row["question"]), answer.strip().replace(",", "") if mark else "")


def math(row: Row) -> Question:
    return Question(text(row["problem"]), last_boxed(text(row["solution"])) or "", text(row["level"]))


def math500(row: Row) -> Question:
    return Question(text(row["problem"]), text(row["answer"]), text(row["level"]))


def openr1(row: Row) -> Question | str:
    if row.get("question_type") == "proof":
        return "proof"
    return Question(text(row["problem"]), text(row["answer"]))


def dapo(row: Row) -> Question:
    return Question(text(row["prompt"]), text(row["solution"]))


def dapo_raw(row: Row) -> Question:
    return Question(said(row["prompt"], "user"), text((row["reward_model"] or {}).get("ground_truth")))


def nemotron(row: Row) -> Question:
    return Question(said(row["messages"], "user"), last_boxed(said(row["messages"], "assistant")) or "")


def openthoughts(row: Row) -> Question:
    turns = row["conversations"]
    return Question(said(turns, "user", "human"), last_boxed(said(turns, "assistant", "gpt")) or "")


def aime_past(row: Row) -> Question | str:
    """The question of an AIME of 1983 to 2023; later ones are for evaluation."""
    if int(row["Year"]) >= 2024:
        return "held out"
    return Question(text(row["Question"]), text(row["Answer"]), text(row["Year"]))


def aime24(row: Row) -> Question:
    return Question(text(row["problem"]), text(row["answer"]))


def aime25(row: Row) -> Question:
    return Question(text(row["question"]), text(row["answer"]))


SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra")
MATH_PARTS = tuple((subject, split) for subject in (*SUBJECTS, "precalculus") for split in ("train", "test"))
QA, TURNS = ("question", "answer"), ("conversations",)
SOURCES = {
    "gsm8k": Source("openai/gsm8k", (("main", "train"),), QA, gsm8k, "mit"),
    "gsm8k_test": Source("openai/gsm8k", (("main", "test"),), QA, gsm8k, "mit"),
    "math": Source("EleutherAI/hendrycks_math", MATH_PARTS, ("problem", "solution", "level"), math, "mit"),
    "math500": Source(
        "HuggingFaceH4/MATH-500",
        (("default", "test"),),
        ("problem", "answer", "level"),
        math500,
        "not stated (MATH: mit)",
    ),
    "openr1": Source(
        "open-r1/OpenR1-Math-220k",
        (("default", "train"),),
        ("problem", "answer"),
        openr1,
        "apache-2.0",
        extra=("question_type",),
    ),
    "dapo": Source(
        "open-r1/DAPO-Math-17k-Processed",
        (("en", "train"),),
        ("prompt", "solution"),
        dapo,
        "not stated (its source: apache-2.0)",
    ),
    "dapo_raw": Source(
        "BytedTsinghua-SIA/DAPO-Math-17k", (("default", "train"),), ("prompt", "reward_model"), dapo_raw, "apache-2.0"
    ),
    "nemotron": Source(
        "nvidia/Nemotron-Post-Training-Dataset-v1", (("default", "math"),), ("messages",), nemotron, "cc-by-4.0"
    ),
    "openthoughts": Source(
        "open-thoughts/OpenThoughts-114k", (("default", "train"),), TURNS, openthoughts, "apache-2.0"
    ),
    "aime_past": Source(
        "di-zhang-fdu/AIME_1983_2024", (("default", "train"),), ("Question", "Answer", "Year"), aime_past, "mit"
    ),
    "aime24": Source("HuggingFaceH4/aime_2024", (("default", "train"),), ("problem", "answer"), aime24, "not stated"),
    "aime25": Source(
        "opencompass/AIME2025", (("AIME2025-I", "test"), ("AIME2025-II", "test")), QA, aime25, "not stated"
    ),
}


def find_source(name: str) -> Source:
    require(name in SOURCES, "data.mixture", name, ", ".join(SOURCES))
    return SOURCES[name]


def accepted(row: Row, source: Source) -> Question | str:
    """The question of a row, without instructions, or the reason why the row is dropped.

    Raises ValueError, one line, for a row with an unexpected layout.
    """
    try:
        found = source.question(row)
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise ValueError(f"{source.hub}: a row is not as expected ({error!r}): {str(row)[:100]}") from error
    if isinstance(found, str):
        return found
    question = found._replace(prompt=bare(found.prompt))
    return unfit(question) or question._replace(answer=gold(question.answer))


def _is_read_as_text(prompt: str) -> bool:
    """Whether a run takes a prompt as it stands: not if it is empty, or the text of turns."""
    try:
        return prompt_of(prompt) == prompt
    except ValueError:
        return False


def unfit(question: Question) -> str | None:
    """Why a question's answer cannot be verified, or could be guessed; None if it is fit."""
    prompt, answer, _ = question
    if not _is_read_as_text(prompt):
        return "no prompt"
    if is_none(answer):
        return "no answer"
    try:
        answer = gold(answer)
    except ValueError:  # what a run would refuse to read
        return "answer is prose"
    if FIGURE.search(prompt):
        return "needs a figure"
    if OPTION.fullmatch(re.sub(r"\\[a-z]+|[{}$]", "", answer).strip()) and OPTIONS.search(prompt):
        return "multiple choice"
    return None
