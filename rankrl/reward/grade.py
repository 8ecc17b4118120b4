"""The verdict on a response. `Grader.grade` is the only way to get one, in training and elsewhere.

What strings and exact numbers can decide is decided here, in microseconds; algebra goes to a pool
of processes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from rankrl.recipe.schema import Reward
from rankrl.reward.equality import judge
from rankrl.reward.extract import answer
from rankrl.reward.provers import Pair, Pool

GRADER = 4
"""Version of the grading rules.

Scores of different versions are not comparable, so it is part of the key of cached base scores.
"""
OUTCOMES = ("correct", "wrong", "unparsable", "timeout")


@dataclass(frozen=True)
class Verdict:
    """The verdict on a response: `outcome`, one of OUTCOMES, and whether the answer was `boxed`."""

    outcome: str
    boxed: bool

    @property
    def correct(self) -> bool:
        """Whether the response is right; this is its score."""
        return self.outcome == "correct"


class Grader:
    """Grades responses, from any thread.

    Its worker processes start with the first answer that needs algebra, and live until `close`. A
    worker has `deadline_s` seconds for a verdict, a call of `grade` has `call_s` seconds. The
    latest `remembered` verdicts are cached.
    """

    def __init__(self, workers: int = 2, deadline_s: float = 5.0, call_s: float = 60.0, remembered: int = 100_000):
        self.pool, self.call_s, self.remembered = Pool(workers, deadline_s), call_s, remembered
        self._known: OrderedDict[Pair, str] = OrderedDict()
        self._lock = threading.Lock()

    def grade(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """A verdict for each response, in order. No algebra is started after `call_s` seconds."""
        answers = [answer(response) for response in responses]
        outcomes = self.outcomes([(given, gold) for (given, _), gold in zip(answers, golds, strict=True)])
        return [Verdict(outcome, boxed) for outcome, (_, boxed) in zip(outcomes, answers, strict=True)]

    def outcomes(self, pairs: list[Pair]) -> list[str]:
        """One of OUTCOMES for each (given, gold) pair, in order."""
        quick = {pair: self._remembered(pair) or judge(*pair) for pair in dict.fromkeys(pairs)}
        hard = [pair for pair, outcome in quick.items() if outcome is None]
        proved = self.pool.prove(hard, self.call_s) if hard else []
        found = {**quick, **dict(zip(hard, proved, strict=True))}
        self._remember(found)
        return [found[pair] or "timeout" for pair in pairs]

    def close(self) -> None:
        self.pool.close()

    def _remembered(self, pair: Pair) -> str | None:
        with self._lock:
            return self._known.get(pair)

    def _remember(self, found: dict[Pair, str | None]) -> None:
        """Caches the latest verdicts, except for long answers: those are refused quickly anyway."""
        short = {pair: outcome for pair, outcome in found.items() if outcome and len(pair[0]) + len(pair[1]) < 1000}
        with self._lock:
            self._known.update(short)
            for pair in short:
                self._known.move_to_end(pair)
            while len(self._known) > self.remembered:
                self._known.popitem(last=False)


def shaped(verdict: Verdict, response_tokens: int, longest_tokens: int, weights: Reward) -> float:
    """The training reward: 1[correct] +- boxed_bonus - length_penalty * `beyond`.

    With 2 boxed_bonus + length_penalty < 1 (checked when the recipe is loaded), a right answer
    always gets more than a wrong one.
    """
    return (
        float(verdict.correct)
        + weights.boxed_bonus * (1 if verdict.boxed else -1)
        - weights.length_penalty * beyond(response_tokens, longest_tokens, weights)
    )


def beyond(response_tokens: int, longest_tokens: int, weights: Reward) -> float:
    """How far a response is over the length that costs nothing, from 0 to 1.

    0 up to that length, then linear up to 1 at the longest response (DAPO, arXiv 2503.14476, eq.
    13).
    """
    if weights.length == "none":
        return 0.0
    buffer_tokens = weights.overlong_buffer_tokens or (1 - weights.length_free) * longest_tokens
    return min(max(1 - (longest_tokens - response_tokens) / buffer_tokens, 0.0), 1.0)
