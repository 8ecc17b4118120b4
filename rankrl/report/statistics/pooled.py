"""Intervals of a row of statistics that draw on the other rows: of its gain and of its risk."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankrl.report.statistics.blocks import Blocks, blocks
from rankrl.report.statistics.cells import Result
from rankrl.report.statistics.intervals import EQUAL, bonferroni, clopper_pearson


def add_pooled(rows: list[dict[str, Any]], results: list[Result], keys: tuple[str, ...]) -> None:
    """Adds pooled_ci95, design_effect and design_risk_ci95 to rows of statistics by `keys`.

    pooled_ci95: 95 % interval of mean_gain clustered by seed, with variances drawn towards those of
    the other rows (report/statistics/spread.py), within the gains that are possible. design_effect:
    by how much the runs of one seed, that resemble each other, tell less than as many seeds;
    design_risk_ci95: Clopper-Pearson, with all counts divided by it (Korn and Graubard 1998).
    """
    table = blocks(results, keys)
    likeness = likeness_of_seeds(table)
    bases = [run["base_score"] for run in results if run["base_score"] is not None]
    lowest, highest = (-max(bases), 1 - min(bases)) if bases else (-1.0, 1.0)
    error_G, freedom_G = table.mean_error_G
    for row in rows:
        row["design_effect"] = 1 + (row["n_seeds"] / row["n_blocks"] - 1) * likeness
        counts = (row[key] / row["design_effect"] for key in ("negative_runs", "n_seeds"))
        row["design_risk_ci95"] = clopper_pearson(*counts)
        subject = tuple(row[key] for key in keys)
        g = table.subjects.index(subject) if subject in table.subjects else None
        if g is None or not np.isfinite(error_G[g]) or abs(table.mean_G[g] - row["mean_gain"]) > EQUAL:
            row["pooled_ci95"] = None  # also where some of its cells are left out
            continue
        half = float(bonferroni(1)(freedom_G[g]) * error_G[g])
        row["pooled_ci95"] = [max(row["mean_gain"] - half, lowest), min(row["mean_gain"] + half, highest)]


def likeness_of_seeds(table: Blocks) -> float:
    """Correlation of the gains of two runs of one subject and seed, at least 0 (one-way ANOVA).

    The seed's effect, which all subjects share, is part of it. 0 where no seed has two such runs.
    """
    n_GB1 = np.isfinite(table.gain_GBS).sum(2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_GB1 = np.nansum(table.gain_GBS, 2, keepdims=True) / np.where(n_GB1 > 1, n_GB1, np.nan)
    residual_GBS = table.gain_GBS - mean_GB1
    squares_GS, n_GS = np.nansum(residual_GBS**2, 1), np.isfinite(residual_GBS).sum(1)
    both_GS = np.nansum(residual_GBS, 1) ** 2 - squares_GS
    scale_G = squares_GS.sum(1) / np.maximum(n_GS.sum(1), 1)
    able = (scale_G > 0) & (n_GS > 1).any(1)
    pairs = float((n_GS * (n_GS - 1)).sum(1)[able].sum())
    return min(max(float((both_GS.sum(1)[able] / scale_G[able]).sum()) / pairs, 0.0), 1.0) if pairs else 0.0
