"""The study's runs as a table, and the numbers that its verdicts stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from keep import read

from rankrl.report.statistics.intervals import t_interval

STUDY = Path(__file__).resolve().parent


def runs(file: Path) -> pd.DataFrame:
    """A row per run of a part's file: sweep, arm, rank, batch_size, seed, lr, alpha, gain, tokens.

    A run that diverged has lost its base's score (plan, Analysis).
    """
    return pd.DataFrame([_row(row) for row in read(file)])


def _row(row: dict[str, Any]) -> dict[str, Any]:
    result, derived = json.loads(row["result_json"]), yaml.safe_load(row["run_yaml"])["derived"]
    diverged = result["status"] == "diverged"
    return {
        "sweep": row["sweep"],
        **{key: result[key] for key in ("arm", "rank", "batch_size", "seed", "status")},
        **{key: derived[key]["value"] for key in ("lr", "alpha")},
        "gain": -result["base_score"] if diverged else result["gain"],
        "tokens": result["tokens_total"],
    }


class Estimate(NamedTuple):
    """A mean over seeds with its t interval."""

    n: int
    mean: float
    low: float
    high: float


def mean_interval(values: Any, family: int = 1) -> Estimate:
    """The mean of `values`, one per seed, as one of `family` that hold together at 95 %.

    The ends are NaN for fewer than two values, or if all are equal.
    """
    values = np.asarray(values, dtype=float)
    low, high = t_interval(values, 1 - 0.05 / family) or (np.nan, np.nan)
    return Estimate(len(values), float(values.mean()), low, high)


def difference(table: pd.DataFrame, one: pd.Series, other: pd.Series, family: int = 1) -> Estimate:
    """Mean over seeds, and its interval, of the gain of `one` minus that of `other`.

    `one` and `other` choose rows of `table`, at most one per seed; only seeds of both count.
    """
    gains = [table[chosen].set_index("seed", verify_integrity=True)["gain"] for chosen in (one, other)]
    return mean_interval((gains[0] - gains[1]).dropna(), family)
