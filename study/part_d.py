"""Part D: tail inits with a frozen A. Verdicts on H8: the arms, the choice of checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from drawing import intervals
from runs import Row, against, estimate, mean_interval, verdict

from rankrl.report.figures.canvas import COLOURS, Canvas, panels

OFF = "off"
CHOSEN = 0.01
"""What the choice of the checkpoint adds at least (H8)."""


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """The part's runs, each arm named after rate and batch too: "measured: rlmo"."""
    rows = table.copy()
    rows["setting"] = np.where(rows["sweep"] == "tail_inherited", "rate of 1e-3", "measured rate")
    rows["arm"] = rows["setting"] + ": " + rows["arm"]
    rows["choice"] = rows["best_score"] - rows["final_score"]
    return rows


def compared(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every arm minus `off` at the same rate, rank and batch size: one family."""
    rows = prepared(table)
    names = {arm: f"{setting}: {OFF}" for arm, setting in zip(rows["arm"], rows["setting"], strict=True)}
    return against(rows, {arm: off for arm, off in names.items() if arm != off})


def choice(table: pd.DataFrame) -> list[Row]:
    """What the best-on-evaluation checkpoint adds to the gain, by arm: one family."""
    rows = prepared(table).dropna(subset=["choice"])
    groups = rows.groupby(["arm", "rank", "batch_size"])["choice"]
    found = []
    for (arm, rank, batch_size), values in groups:
        adds = mean_interval(values, groups.ngroups)
        what = f"{arm}, rank {rank}, batch {batch_size}: best checkpoint minus last one"
        found.append(Row("H8, choice", what, adds, verdict(adds.low > CHOSEN, adds.high < CHOSEN)))
    return found


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H8: refuted by an arm that is above the default, or by a choice that adds less than .01."""
    found = []
    for row in compared(table):
        difference = estimate(row)
        what = f"{row['arm']} minus off, rank {row['rank']}, batch {row['batch_size']}"
        found.append(Row("H8", what, difference, verdict(difference.high < 0 or difference.within, difference.low > 0)))
    return found + choice(table)


def tail_against_off(table: pd.DataFrame) -> Canvas:
    """Each arm's gain minus that of the default, with its interval, a panel per rate."""
    rows = [row for row in compared(table) if row["batch_size"] == 16]
    settings = sorted({row["arm"].split(": ")[0] for row in rows})
    names = sorted({row["arm"].split(": ")[1] for row in rows}, reverse=True)
    canvas, axes = panels(len(settings), 3.4, 0.8 + 0.3 * len(names), sharey=True)
    for panel, setting in zip(axes.flat, settings, strict=True):
        for i, rank in enumerate(sorted({row["rank"] for row in rows})):
            ours = [row for row in rows if row["arm"].startswith(f"{setting}: ") and row["rank"] == rank]
            heights = [names.index(row["arm"].split(": ")[1]) + 0.2 * (i - 0.5) for row in ours]
            intervals(panel, [estimate(row) for row in ours], heights, i, ls="", label=f"rank {rank}")
        panel.axvline(0, color=COLOURS[-1], lw=0.8)
        panel.set_title(setting)
        panel.set_xlabel("gain minus that of the default")
    axes.flat[0].set_yticks(range(len(names)), names)
    axes.flat[0].legend()
    return canvas


FIGURES = (tail_against_off,)
