"""Metric curves of several runs, aligned on common PPO steps."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from scipy import stats

Curve = list[dict[str, Any]]
"""Lines of a metrics.jsonl, thinned."""


def points(curve: Curve, name: str) -> list[tuple[int, float]]:
    """(step, value) of each line that has both as finite numbers, sorted by step."""
    found = [(line["step"], line[name]) for line in curve if _number(line.get("step")) and _number(line.get(name))]
    return sorted(dict(found).items())


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and isfinite(value)


def aligned(curves: list[Curve], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[S]` of the longest curve and values `[R, S]` of runs, NaN outside a run's own steps.

    A run that stopped early was thinned at other steps, so its values are interpolated linearly
    between its own steps. Curves without `name` are left out.
    """
    found = [values for curve in curves if (values := points(curve, name))]
    if not found:
        return np.zeros(0), np.zeros((0, 0))
    steps = np.array([step for step, _ in max(found, key=lambda values: values[-1][0])], dtype=float)
    rows = [np.interp(steps, [s for s, _ in run], [v for _, v in run], left=np.nan, right=np.nan) for run in found]
    return steps, np.stack(rows)


def band(values_RS: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the t interval over runs, where at least two runs have a value.

    Returns (`[3, S']`: mean and ends, `[S]`: whether a column of `values_RS` is among the S').
    """
    n = (~np.isnan(values_RS)).sum(axis=0)
    shown = values_RS[:, n > 1]
    mean, sd = np.nanmean(shown, axis=0), np.nanstd(shown, axis=0, ddof=1)
    half = stats.t.ppf((1 + level) / 2, n[n > 1] - 1) * sd / np.sqrt(n[n > 1])
    return np.stack([mean, mean - half, mean + half]), n > 1
