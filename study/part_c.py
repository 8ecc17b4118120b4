"""Part C: the recipe that part B chose, on seeds that chose nothing. Verdicts on H7."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from runs import Estimate, Row, mean_interval, spread_ratio, verdict
from scipy import stats

from rankrl.report.figures.canvas import COLOURS, MARKERS, Canvas, panels
from rankrl.report.statistics.claims import claims
from rankrl.report.statistics.limits import Limits

LIMITS = Limits(margin=0.02, risk=0.10)
WINDOWS_STEPS = (10, 1, 20)
"""Steps whose rollouts are averaged where training is compared: the published, and two others."""
DEFAULT, LONGER = "_default", "_longer"
"""How a sweep is named that stands beside another: the default's runs, rank 1 with more steps."""
KINDS = {"noninferior": "mean gain below that of the better rank", "risk_below": "share of runs below the base"}


def claimed(table: pd.DataFrame) -> list[Row]:
    """The two claims of a testbed's report on rank 1; H7 is refuted by one that is unsupported.

    Diverged runs count as the plan says (runs.py). A claim that the report could not make is open.
    """
    made = {row["kind"]: row for row in claims(table.to_dict("records"), LIMITS) if row["subject"]["rank"] == 1}
    n, sweep = int((table["rank"] == 1).sum()), table["sweep"].iloc[0]
    found = []
    for kind, what in KINDS.items():
        row: dict[str, Any] = made.get(kind, {"estimate": np.nan, "ci95": (np.nan, np.nan), "supported": None})
        low, high = row["ci95"]
        # one side: the other end only says that rank 1 is not above the better one
        estimate = Estimate(n, row["estimate"], low, np.nan if kind == "noninferior" else high)
        found.append(
            Row(
                "H7", f"{sweep}, rank 1: {what}", estimate, verdict(row["supported"] is True, row["supported"] is False)
            )
        )
    return found


def training_N(curves_RS: np.ndarray, window_steps: int) -> np.ndarray:
    """Share of right answers in rollouts, a mean over runs and over `window_steps` steps each."""
    return np.convolve(curves_RS.mean(axis=0), np.full(window_steps, 1 / window_steps), mode="valid")


def steps_to(one: pd.Series, other: pd.Series, window_steps: int = WINDOWS_STEPS[0]) -> Estimate:
    """The share of its steps at which `other` first trained as well as `one` did in its last ones.

    Both: the `accuracy_S` of runs by seed. Runs that are not whole (diverged, or a step without a
    rollout) do not count, nor seeds that lack one. Percentile bootstrap over seeds, in which a draw
    that never got there counts as 1. NaN where `other` never got there, or with one seed.
    """
    n_steps = max(map(len, (*one, *other)))
    ones, others = (
        {seed: curve for seed, curve in runs.items() if len(curve) == n_steps and np.isfinite(curve).all()}
        for runs in (one, other)
    )
    seeds = sorted(ones.keys() & others.keys())
    if len(seeds) < 2:
        return Estimate(len(seeds), np.nan, np.nan, np.nan)
    one_RS, other_RS = (np.array([curves[seed] for seed in seeds]) for curves in (ones, others))

    def share(drawn: np.ndarray, never: float = 1.0) -> float:
        other_N, one_N = (training_N(curves_RS[drawn], window_steps) for curves_RS in (other_RS, one_RS))
        reached = other_N >= one_N[-1]
        return (int(np.argmax(reached)) + window_steps) / n_steps if reached.any() else never

    every = np.arange(len(seeds))
    drawn = stats.bootstrap((every,), share, vectorized=False, method="percentile", n_resamples=2000, rng=0)
    found = share(every, never=np.nan)
    ends = drawn.confidence_interval if np.isfinite(found) else (np.nan, np.nan)
    return Estimate(len(seeds), found, *map(float, ends))


def beside(sweep: str, table: pd.DataFrame) -> list[Row]:
    """What the runs beside a confirmed sweep say: the default's, and those of more steps."""
    gains = {(name, rank): rows.set_index("seed")["gain"] for (name, rank), rows in table.groupby(["sweep", "rank"])}
    pairs = {
        "the recipe minus the default, both at rank 1": ((sweep, 1), (sweep + DEFAULT, 1)),
        "the default at rank 1 minus rank 32": ((sweep + DEFAULT, 1), (sweep, 32)),
        "rank 1 with half as many steps again, minus rank 32": ((sweep + LONGER, 1), (sweep, 32)),
    }
    return [
        Row("beside H7", f"{sweep}: {what}", mean_interval((gains[one] - gains[other]).dropna()))
        for what, (one, other) in pairs.items()
        if one in gains and other in gains
    ]


def confirmed(table: pd.DataFrame) -> list[str]:
    """The sweeps that H7 is about."""
    return [sweep for sweep in sorted(table["sweep"].unique()) if not sweep.endswith((DEFAULT, LONGER))]


def verdicts(table: pd.DataFrame) -> list[Row]:
    """By testbed H7's two claims, and beside them what rank 1 loses, its spread and its tokens."""
    found = []
    for sweep in confirmed(table):
        rows = table[table["sweep"] == sweep]
        by_rank = {rank: of.set_index("seed") for rank, of in rows.groupby("rank")}
        found += claimed(rows)
        if not {1, 32} <= by_rank.keys():
            continue
        gains = {rank: of["gain"] for rank, of in by_rank.items()}
        tokens = rows.groupby("rank")["tokens_total"].mean()
        ratios = {
            "sd over seeds of rank 1, over that of rank 32": spread_ratio(gains[1], gains[32]),
            "tokens of rank 1, over those of rank 32": _known(tokens[1] / tokens[32], rows),
            **{
                f"share of steps at which rank 32 first trained as well as rank 1 at last, means over {window}": steps_to(
                    by_rank[1]["accuracy_S"], by_rank[32]["accuracy_S"], window
                )
                for window in WINDOWS_STEPS
            },
        }
        found += [
            Row("beside H7", f"{sweep}: gain of rank 1 minus rank 32", mean_interval((gains[1] - gains[32]).dropna())),
            *(Row("beside H7", f"{sweep}: gain of rank {rank}", mean_interval(gains[rank])) for rank in (1, 32)),
            *(Row("beside H7", f"{sweep}: {what}", ratio) for what, ratio in ratios.items()),
            *beside(sweep, table),
        ]
    return found


def _known(value: float, rows: pd.DataFrame) -> Estimate:
    return Estimate(rows["seed"].nunique(), float(value), np.nan, np.nan)


def gain_of_every_seed(table: pd.DataFrame) -> Canvas:
    """Every seed's gain in order, by rank, a panel per testbed."""
    sweeps = confirmed(table)
    canvas, axes = panels(len(sweeps), 4.2, 3.4, sharex=True, sharey=True)
    for panel, sweep in zip(axes.flat, sweeps, strict=True):
        for i, (rank, rows) in enumerate(table[table["sweep"] == sweep].groupby("rank")):
            gains = np.sort(rows["gain"])
            share = (np.arange(len(gains)) + 0.5) / len(gains)
            panel.plot(
                gains, share, MARKERS[i] + "-", color=COLOURS[i], ms=4, lw=1, label=f"rank {rank}, {len(gains)} seeds"
            )
        panel.axvline(0, color=COLOURS[-1], lw=0.8)
        panel.set_title(sweep.removeprefix("study_c_").replace("_", "-"))
        panel.set_xlabel("gain over the base")
        panel.legend()
    axes.flat[0].set_ylabel("share of seeds with less")
    return canvas


FIGURES = (gain_of_every_seed,)
