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
from rankrl.report.statistics.paired import comparisons

MARGIN = 0.02
"""Gains that differ by less are the same in practice (plan, Analysis)."""
STUDY = Path(__file__).resolve().parent


def runs(file: Path) -> pd.DataFrame:
    """A row per run of a part's file: its result.json with the sweep's name, lr and alpha.

    A run that diverged has lost its base's score (plan, Analysis).
    """
    return pd.DataFrame([_row(row) for row in read(file)])


def _row(row: dict[str, Any]) -> dict[str, Any]:
    result, derived = json.loads(row["result_json"]), yaml.safe_load(row["run_yaml"])["derived"]
    diverged = result["status"] == "diverged"
    return {
        "sweep": row["sweep"],
        **result,
        **{key: derived[key]["value"] for key in ("lr", "alpha")},
        "gain": -result["base_score"] if diverged else result["gain"],
    }


class Estimate(NamedTuple):
    """A mean over seeds with its interval."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        """Whether it is shown to be less than the margin from 0."""
        return self.low > -MARGIN and self.high < MARGIN


class Row(NamedTuple):
    """A line of docs/study/verdicts.md: what a hypothesis stands or falls by, and which it does."""

    hypothesis: str
    what: str
    found: Estimate
    verdict: str = ""


def verdict(stands: bool, refuted: bool) -> str:
    """One word for what the runs allow to say of a hypothesis."""
    return "stands" if stands else "refuted" if refuted else "open"


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


def against(table: pd.DataFrame, references: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of arms against their references, as the report compares them: one family.

    `references`: arm -> the arm that it is compared with, at the same rank, batch size and seeds.
    """
    return comparisons(table.to_dict("records"), {arm: {"": other} for arm, other in references.items()})


def estimate(row: dict[str, Any]) -> Estimate:
    """The family-wise interval of a row of `against`."""
    return Estimate(row["n_pairs"], row["mean_difference"], *(row["family_ci95"] or (np.nan, np.nan)))
