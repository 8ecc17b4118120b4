"""How a run ended: the one shape of result.json, for those who write it and those who read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from rankrl.recipe.plan import Run


@dataclass(frozen=True)
class Result:
    """The content of result.json, in its order.

    Scores and gain are fractions, null where they were not measured.
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
    """Tokens of prompts and responses."""
    steps: int
    """PPO steps that were done."""
    wall_s: float
    trainable_params: int
    base_params: int
    error: str = ""
    """What ended the run; result.json has it only where there is one."""

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
        """The result of `run`. Its adapter may have fewer parameters than were planned."""
        gain = None if final_score is None or base_score is None else final_score - base_score
        grid = (run.run_id, run.arm, run.rank, run.batch_size, run.seed)
        scores = (base_score, final_score, best_score, gain)
        sizes = (trainable_params, run.scale.model.base_params)
        return cls(*grid, status, *scores, tokens_total, steps, wall_s, *sizes, error)

    def row(self) -> dict[str, Any]:
        """What the report counts: every key, `error` included."""
        return asdict(self)

    def as_dict(self) -> dict[str, Any]:
        """What result.json says."""
        return {key: value for key, value in self.row().items() if key != "error" or value}

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"


KEYS = tuple(field.name for field in fields(Result) if field.name != "error")
"""What every result.json has."""


def from_content(content: dict[str, Any]) -> Result:
    """What a result.json without a problem (rankrl.report.valid) says; more keys are left out."""
    error = content.get("error") or ""
    said = {key: content[key] for key in KEYS}
    return Result(**said, error=error if isinstance(error, str) else repr(error))
