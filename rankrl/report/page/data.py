"""The curves of every run, packed for the page: subsampled, quantised and deflated.

They are stored in chunks of runs; a click unpacks one chunk.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

from rankrl.report.page.table import data
from rankrl.report.read import curve

SERIES = {
    "accuracy": "training accuracy",
    "reward_mean": "reward",
    "kl_ref": "KL to the base, nats",
    "kl_anchor": "KL to the anchor, nats",
    "kl_step": "KL of the step before, nats",
    "kl_target": "target of that KL, nats",
    "entropy": "entropy, nats",
    "response_tokens_mean": "response, tokens",
    "clip_frac": "clipped share",
    "uniform_group_frac": "share of uniform groups",
    "grad_cosine": "gradient cosine",
    "ess_frac": "effective sample, share of tokens",
    "ratio_max": "largest importance ratio",
    "advantage_sd": "advantage sd",
    "delta_norm": "norm of delta W",
    "explained_variance": "explained variance",
    "norm_clipped_frac": "steps with a clipped gradient",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "lr_factor": "factor on the learning rate",
}
LEVELS = 255
"""A curve is drawn to 1/255 of its range, finer than a screen shows.

The exact numbers stay in metrics.jsonl."""
CHUNK_RUNS = 200
POINTS, FEW_POINTS, MANY_RUNS = 64, 24, 1000
LARGEST = 1e30


def quantise(values: list[Any]) -> list[Any]:
    """[lowest, highest, levels]: each value as a level from 0 (lowest) to LEVELS (highest).

    A value that is not a finite number becomes None. [] without finite numbers.
    """
    numbers = [_number(value) for value in values]
    finite = [value for value in numbers if value is not None]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    step = (high - low) / LEVELS or 1.0
    levels = [None if value is None else round((value - low) / step) for value in numbers]
    return [float(f"{low:.5g}"), float(f"{high:.5g}"), levels]


def _number(value: Any) -> float | None:
    """The value as a float; None for NaN, text, and numbers too large for any metric."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None


def packed(run: Path, points: int) -> dict[str, Any]:
    """Steps and quantised curves of one run, at most `points` steps; {} without metrics."""
    lines = [line for line in curve(run, points) if _number(line["step"]) is not None]
    found = {name: quantise([line.get(name) for line in lines]) for name in SERIES}
    curves = {name: levels for name, levels in found.items() if levels}
    return {"step": [line["step"] for line in lines], **curves} if curves else {}


def curve_scripts(directory: Path, run_ids: list[str]) -> str:
    """Script elements for page.js: chunks of curves in the order of `run_ids`, and curve names.

    "" if no run has curves. `run_ids` are in the order of the table of runs.
    """
    points = POINTS if len(run_ids) <= MANY_RUNS else FEW_POINTS
    starts = range(0, len(run_ids), CHUNK_RUNS)
    chunks = [[packed(directory / name, points) for name in run_ids[start : start + CHUNK_RUNS]] for start in starts]
    if not any(run for chunk in chunks for run in chunk):
        return ""
    scripts = [
        f'<script type="text/plain" id="curves-{i}">{_deflated(chunk)}</script>' for i, chunk in enumerate(chunks)
    ]
    return data("curves", {"runs": CHUNK_RUNS, "levels": LEVELS, "series": SERIES}) + "".join(scripts)


def _deflated(content: Any) -> str:
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)).decode()
