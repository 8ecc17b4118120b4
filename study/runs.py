"""The study's runs as a table, and the numbers that its verdicts stand on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from keep import read
from scipy import stats

from rankrl.report.statistics.family import family_interval
from rankrl.report.statistics.intervals import t_interval
from rankrl.report.statistics.paired import comparisons

CELL = ("rank", "batch_size")
MARGIN = 0.02
"""Gains that differ by less are the same in practice (plan, Analysis)."""
STUDY = Path(__file__).resolve().parent


def runs(file: Path) -> pd.DataFrame:
    """A row per run of a part's file: its result.json with the sweep's name, lr and alpha.

    `accuracy_S` is the share of right answers in the rollout of each step. A run that diverged has
    lost its base's score (plan, Analysis).
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
        "accuracy_S": [json.loads(line).get("accuracy", np.nan) for line in row["metrics_jsonl"].splitlines()],
    }


class Estimate(NamedTuple):
    """A mean over seeds with its interval, whose ends are NaN where they are not known."""

    n: int
    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """A line of docs/study/verdicts.md: what a hypothesis stands or falls by, and which it does."""

    hypothesis: str
    what: str
    found: Estimate
    verdict: str = ""


def verdict(stands: bool, refuted: bool) -> str:
    """One word for what the runs allow to say of a hypothesis."""
    return "refuted" if refuted else "stands" if stands else "open"


def overall(words: Iterable[str]) -> str:
    """The verdict on a hypothesis that says something of several cases: it stands if all do."""
    found = set(words)
    return "refuted" if "refuted" in found else "stands" if found == {"stands"} else "open"


def mean_interval(values: Any, family: int = 1) -> Estimate:
    """The mean of `values`, one per seed, as one of `family` that hold together at 95 %.

    Several equal values, as best rates on a coarse grid are, have an interval of no width.
    """
    values = np.asarray(values, dtype=float)
    equal = (values[0], values[0]) if len(values) > 1 else (np.nan, np.nan)
    low, high = t_interval(values, 1 - 0.05 / family) or equal
    return Estimate(len(values), float(values.mean()), low, high)


def spread_ratio(one: pd.Series, other: pd.Series) -> Estimate:
    """sd of gains over that of others, with the 95 % F interval of independent normal values."""
    ratio = float(one.std(ddof=1) / other.std(ddof=1))
    low, high = (stats.f.ppf(q, len(one) - 1, len(other) - 1) for q in (0.975, 0.025))
    return Estimate(min(len(one), len(other)), ratio, ratio / sqrt(low), ratio / sqrt(high))


def difference(table: pd.DataFrame, one: pd.Series, other: pd.Series, family: int = 1) -> Estimate:
    """Mean over seeds, and its interval, of the gain of `one` minus that of `other`.

    `one` and `other` choose rows of `table`, at most one per seed; only seeds of both count.
    """
    gains = [table[chosen].set_index("seed", verify_integrity=True)["gain"] for chosen in (one, other)]
    return mean_interval((gains[0] - gains[1]).dropna(), family)


def against(table: pd.DataFrame, pairs: list[tuple[str, str]], family: int | None = None) -> list[dict[str, Any]]:
    """Rows of arms against others, compared as the report does, at every rank and batch size.

    `pairs`: an arm, and the arm that it is compared with, on the seeds that both have. Pairs of the
    same seeds share their variance (report/statistics/spread.py): the report's own comparison would
    leave out an arm with few of the seeds. `family`: how many intervals hold together, by default
    those that are returned. Arms without runs are left out.

    Raises ValueError for an arm without a run of a seed of its other one.
    """
    seeds = {key: frozenset(rows["seed"]) for key, rows in table.groupby(["arm", *CELL])}
    asked: dict[frozenset[int], list[tuple[tuple[Any, ...], tuple[Any, ...]]]] = {}
    for arm, other in pairs:
        for key in (key for key in seeds if key[0] == arm):
            reference = (other, *key[1:])
            common = seeds[key] & seeds.get(reference, frozenset())
            if not common:
                raise ValueError(
                    f"{arm}: got no seed at {key[1:]} that {other} has as well; run both on the same seeds"
                )
            asked.setdefault(common, []).append((key, reference))
    keys = pd.MultiIndex.from_frame(table[["arm", *CELL]])
    found = []
    for common, of in asked.items():
        rows = table[keys.isin({cell for pair in of for cell in pair}) & table["seed"].isin(common)]
        references: dict[str, dict[str, str]] = {}
        for (arm, *_), (other, *_) in of:
            references.setdefault(arm, {})[other] = other
        found += comparisons(rows.to_dict("records"), references)
    m = family or len(found)
    return [{**row, "family_ci95": family_interval(row, m)} for row in found]


def estimate(row: dict[str, Any]) -> Estimate:
    """The family-wise interval of a row of `against`."""
    return Estimate(row["n_pairs"], row["mean_difference"], *(row["family_ci95"] or (np.nan, np.nan)))
