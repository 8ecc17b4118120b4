"""Held-out scores of a run by PPO step, where its recipe evaluates in between (`eval_every`)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rankrl.report.curves import Curve
from rankrl.report.eval_rows import MOST_ROWS
from rankrl.report.regular_file import opened
from rankrl.report.resolved import resolved_sections

EVERY = re.compile(r"(?m)^\s+eval_every: *[1-9]")


def held_out(run: Path) -> Curve:
    """[{step, held_out}] of a run directory's evaluations; [] if there are none in between."""
    if not EVERY.search(resolved_sections(run / "run.yaml").get("recipe", "")):
        return []  # without this, the samples of every sweep would be read once more
    return scores_by_step(run / "evals.parquet")


def scores_by_step(path: Path) -> Curve:
    """[{step, held_out}] from an evals.parquet: the share of correct samples at each of its steps.

    [] if the file is missing, damaged or too large; the report names such files elsewhere.
    """
    import pyarrow.parquet as pq

    try:
        with opened(path) as handle, pq.ParquetFile(handle) as file:
            table = file.read(columns=["step", "correct"]) if file.metadata.num_rows <= MOST_ROWS else None
        if table is None:
            return []
        steps, at = np.unique(table["step"].to_numpy(), return_inverse=True)
        scores = np.bincount(at, table["correct"].to_numpy().astype(float)) / np.bincount(at)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError):
        return []
    return [{"step": int(step), "held_out": float(score)} for step, score in zip(steps, scores, strict=True)]
