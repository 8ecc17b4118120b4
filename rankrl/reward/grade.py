"""The verdict on an answer and the shaped reward. Nothing is executed and nothing can hang: strings and bounded decimals only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rankrl.recipe.schema import Reward
from rankrl.reward.extract import answer

NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{1,30})?|\.\d{1,30})(/\d{1,30})?")
LONGEST_ANSWER = 200


@dataclass(frozen=True)
class Verdict:
    """`correct` is the score; `boxed` is format."""

    correct: bool
    boxed: bool


def number(text: str) -> Fraction | None:
    """An integer, decimal or simple fraction of at most 30 digits a part, with or without thousands separators; else None."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text.strip().strip("$").strip().replace("\u2212", "-"))
    if len(plain) > LONGEST_ANSWER or not NUMBER.fullmatch(plain):
        return None
    top, _, bottom = plain.partition("/")
    divisor = Fraction(bottom or 1)
    return Fraction(top) / divisor if divisor else None


def equal(given: str, gold: str) -> bool:
    """The same text, or the same number."""
    if given.strip() == gold.strip():
        return True
    value, target = number(given), number(gold)
    return value is not None and value == target


def grade(response: str, gold: str) -> Verdict:
    given, boxed = answer(response)
    return Verdict(equal(given, gold), boxed)


def shaped(verdict: Verdict, response_tokens: int, longest_tokens: int, weights: Reward) -> float:
    """1[correct] +- boxed_bonus - length_penalty * (share of the length beyond `length_free`), the reward trained on.

    With 2 boxed_bonus + length_penalty < 1 (checked when the recipe is loaded), right always beats wrong.
    """
    beyond = max(0.0, response_tokens / longest_tokens - weights.length_free) / (1 - weights.length_free)
    return (
        float(verdict.correct)
        + weights.boxed_bonus * (1 if verdict.boxed else -1)
        - weights.length_penalty * min(beyond, 1.0)
    )
