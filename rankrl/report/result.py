"""The result of a run: the one definition of result.json, for its writers and its readers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from rankrl.recipe.plan import Run


@dataclass(frozen=True)
class Result:
    """The content of result.json, in the order of the file.

    Scores and gain are fractions; None if they were not measured.
    """

    run_id: str
    arm: str
    rank: int
    batch_size: int
    """Prompts per PPO step."""
    seed: int
    status: str
    """finished, diverged or failed."""
    base_score: float | None
    final_score: float | None
    best_score: float | None
    gain: float | None
    """final_score - base_score."""
    tokens_total: int
    """Number of tokens in all prompts and responses of the run."""
    steps: int
    """Number of PPO steps that were completed."""
    wall_s: float
    trainable_params: int
    base_params: int
    error: str = ""
    """Error that ended the run, or "". result.json leaves out an empty one."""
    average_score: float | None = None
    """Score of the average of the last adapters. result.json leaves it out if there is none."""

    @classmethod
    def of(
        cls,
        run: Run,
        status: str,
        base_score: float | None,
        final_score: float | None,
        best_score: float | None,
        tokens_total: int,
        steps: int,
        wall_s: float,
        trainable_params: int,
        error: str = "",
    ) -> Result:
        """The result of `run`; `trainable_params` may be fewer than planned."""
        gain = None if final_score is None or base_score is None else final_score - base_score
        grid = (run.run_id, run.arm, run.rank, run.batch_size, run.seed)
        scores = (base_score, final_score, best_score, gain)
        sizes = (trainable_params, run.scale.model.base_params)
        return cls(*grid, status, *scores, tokens_total, steps, wall_s, *sizes, error)

    def row(self) -> dict[str, Any]:
        """Every key with its value, an empty `error` included: a row of the report."""
        return {key: value for key, value in asdict(self).items() if key != "average_score" or value is not None}

    def as_dict(self) -> dict[str, Any]:
        """The content of result.json: every key, `error` only if there is one."""
        return {key: value for key, value in self.row().items() if key != "error" or value}

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"


KEYS = tuple(field.name for field in fields(Result) if field.name not in ("error", "average_score"))
"""The keys that every result.json has."""


def from_content(content: dict[str, Any]) -> Result:
    """The Result in a result.json that passed rankrl.report.valid. Other keys are ignored."""
    error = content.get("error") or ""
    said = {key: content[key] for key in KEYS}
    average = content.get("average_score")
    return Result(**said, error=error if isinstance(error, str) else repr(error), average_score=average)
