"""Sampled answers of which none is right, or that can hardly be read: what is said, and why it is.

Sweeps say it at the base's evaluation and the first rollout, reports among the problems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankrl.report.metric_lines import number
from rankrl.report.model_text import shortened
from rankrl.report.visible import visible

BEGINNING = "hardly anything is right"
MOSTLY_UNPARSABLE = 0.9
LONGEST = 160
MOST_NAMED = 3


@dataclass(frozen=True)
class Tally:
    """Verdicts on samples, with an example that is not correct."""

    samples: int
    correct: int
    unparsable: int
    truncated_frac: float
    response: str = ""
    gold: str = ""

    @property
    def alarming(self) -> bool:
        return self.samples > 0 and (not self.correct or self.unparsable >= MOSTLY_UNPARSABLE * self.samples)

    def said(self, of: str) -> str:
        """One line: shares, an example in which nothing is hidden, and likely causes."""
        shares = f"{self.unparsable / self.samples:.0%} cannot be parsed, {self.truncated_frac:.0%} are cut off"
        shown = visible(shortened(self.response, LONGEST))
        example = f"; for instance '{shown}' where {visible(self.gold[:60])!r} is right" if self.response else ""
        return (
            f"{BEGINNING}: {self.correct:,} of {self.samples:,} answers of {of} are correct, {shares}{example}. "
            f"Likely causes: {'; '.join(self._causes())}"
        )

    def _causes(self) -> list[str]:
        causes = []
        if self.truncated_frac >= 0.5:
            causes.append("too few tokens (scale.lengths.response_tokens)")
        if self.unparsable >= 0.5 * self.samples:
            causes.append("nothing asks for the answer in \\boxed{} (scale.data.instruction)")
            causes.append("a chat model without its template (scale.data.template=chat)")
        return [*causes, "golds of another kind than the answers (rankrl doctor, rankrl samples)", "too hard questions"]


def tally(metrics: dict[str, Any], examples: list[dict[str, Any]]) -> Tally:
    """The tally of a rollout by its line of metrics.jsonl and its lines of rollouts.jsonl."""
    counts = {name: _count(metrics.get(f"verdict_{name}")) for name in ("correct", "wrong", "unparsable", "timeout")}
    wrong = [line for line in examples if line.get("verdict") != "correct"]
    wrong.sort(key=lambda line: line.get("verdict") != "unparsable")
    example = wrong[0] if wrong else {}
    shown = [text if isinstance(text := example.get(key), str) else "" for key in ("response", "gold")]
    truncated = metrics.get("truncated_frac")
    share = float(truncated or 0) if number(truncated) else 0.0
    return Tally(sum(counts.values()), counts["correct"], counts["unparsable"], share, *shown)


def nothing_right(
    results: list[dict[str, Any]],
    metrics: dict[str, dict[str, Any]],
    example: Callable[[str], dict[str, Any]],
) -> list[str]:
    """A line on the runs of a sweep in which nothing was ever right, or hardly anything is read.

    `metrics`: run id -> last line of its metrics.jsonl; `example` gives that of its rollouts.jsonl.
    """
    found = [result["run_id"] for result in results if _is_alarming(result, metrics.get(result["run_id"], {}))]
    if not found:
        return []
    last = [tally(metrics.get(run, {}), []) for run in found]
    shown = next((line for run in found if (line := example(run)) and line.get("verdict") != "correct"), {})
    samples = sum(one.samples for one in last)
    named = ", ".join(
        [*found[:MOST_NAMED], *([f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else [])]
    )
    which = "all runs" if len(found) == len(results) else f"the runs {named}"
    if not samples:
        return [f"{BEGINNING}: no answer of {which} was correct in any evaluation"]
    whole = Tally(
        samples,
        sum(one.correct for one in last),
        sum(one.unparsable for one in last),
        sum(one.truncated_frac * one.samples for one in last) / samples,
        *(text if isinstance(text := shown.get(key), str) else "" for key in ("response", "gold")),
    )
    return [whole.said(f"the last rollouts of {which}")]


def _is_alarming(result: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Whether no evaluation of a run found a right answer, or its last rollout is hardly read."""
    if result["status"] == "failed":
        return False
    never = result["base_score"] == 0 and not result["best_score"]
    found = tally(metrics, [])
    return never or (found.samples > 0 and found.unparsable >= MOSTLY_UNPARSABLE * found.samples)


def _count(value: Any) -> int:
    return int(value) if number(value) and value >= 0 else 0
