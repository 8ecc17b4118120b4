"""Part D: tail inits with a frozen A. Verdicts on H8: the arms, the choice of checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from drawing import intervals
from runs import CELL, MARGIN, Row, against, estimate, mean_interval, verdict

from rankrl.report.figures.canvas import COLOURS, Canvas, panels

OFF = "off"
HIGHER = {"study_d_twice": "rate of 2e-3", "study_d_four": "rate of 4e-3"}
"""Sweeps beside the part: whether an adapter with a frozen A wants a higher rate."""
AT_1E3 = f"rate of 1e-3: {OFF}"
CHOSEN = 0.01
"""What the choice of the checkpoint adds at least (H8)."""


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """The part's runs, each arm named after its rate too: "measured rate: rlmo"."""
    rows = table[~table["sweep"].isin(HIGHER)].copy()
    rows["setting"] = np.where(rows["sweep"].str.endswith("_inherited"), "rate of 1e-3", "measured rate")
    rows["arm"] = rows["setting"] + ": " + rows["arm"]
    rows["choice"] = rows["best_score"] - rows["final_score"]
    return rows


def of_h8(arm: str, rank: int) -> bool:
    """Whether the hypothesis is about an arm: a tail of W, with a frozen A, at rank 1."""
    return rank == 1 and arm.endswith("_frozen") and "kaiming" not in arm


def compared(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every arm minus `off` at the same rate, rank and batch size: one family, with the choices."""
    rows = prepared(table)
    named = rows[["arm", "setting"]].drop_duplicates().itertuples(index=False)
    pairs = [(arm, f"{setting}: {OFF}") for arm, setting in named if arm != f"{setting}: {OFF}"]
    cells = rows[["arm", *CELL]].drop_duplicates()
    hypothesis = sum(of_h8(arm, rank) for arm, rank in zip(cells["arm"], cells["rank"], strict=True))
    return against(rows, pairs, family=2 * hypothesis)


def at_higher_rates(table: pd.DataFrame) -> list[Row]:
    """Arms at twice and four times 1e-3, minus the default there and at 1e-3: one family."""
    higher = table[table["sweep"].isin(HIGHER)]
    if higher.empty:
        return []
    named = higher.assign(arm=higher["sweep"].map(HIGHER) + ": " + higher["arm"])
    default = table[table["sweep"].str.endswith("_inherited") & (table["arm"] == OFF)]
    alike = default["rank"].isin(named["rank"]) & default["batch_size"].isin(named["batch_size"])
    rows = pd.concat([named, default[alike].assign(arm=AT_1E3)])
    pairs = [(arm, AT_1E3) for arm in named["arm"].unique()]
    pairs += [(arm, f"{arm.split(': ')[0]}: {OFF}") for arm in named["arm"].unique() if not arm.endswith(f": {OFF}")]
    return [
        Row("beside H8", f"{r['arm']} minus {r['against']}, rank {r['rank']}, batch {r['batch_size']}", estimate(r))
        for r in against(rows, pairs)
    ]


def choice(table: pd.DataFrame) -> list[Row]:
    """What the best-on-evaluation checkpoint adds to the gain: the mean over arms, then each arm.

    An arm whose last checkpoint is the best one of every seed has no interval. So that every arm
    adds more than .01 stands by the arms and falls with their mean: if that is below .01, so is an
    arm (plan, amendments). Runs that diverged have no checkpoints to choose from and do not count.
    """
    rows = prepared(table).dropna(subset=["choice"])
    by_arm = dict(list(rows.groupby(["arm", *CELL])["choice"]))
    each = {cell: mean_interval(values, 2 * len(by_arm)) for cell, values in by_arm.items()}
    cells = rows.pivot_table(index="seed", columns=["arm", *CELL], values="choice").dropna()
    mean = mean_interval(cells.mean(axis=1), 2)
    word = verdict(all(adds.low > CHOSEN for adds in each.values()), mean.high < CHOSEN)
    found = [
        Row(
            "H8, choice",
            f"best checkpoint minus last one, mean over {len(each)} of arm, rate, rank and batch",
            mean,
            word,
        )
    ]
    for (arm, rank, batch_size), adds in each.items():
        what = f"{arm}, rank {rank}, batch {batch_size}: best checkpoint minus last one"
        found.append(Row("beside H8", what, adds if adds.low < adds.high else adds._replace(low=np.nan, high=np.nan)))
    return found


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H8: refuted by an arm that is above the default, or by a choice that adds less than .01."""
    found = []
    for row in compared(table):
        difference = estimate(row)
        what = f"{row['arm']} minus off, rank {row['rank']}, batch {row['batch_size']}"
        ours = of_h8(row["arm"], row["rank"])
        word = verdict(difference.high < MARGIN, difference.low > 0) if ours else ""
        found.append(Row("H8" if ours else "beside H8", what, difference, word))
    return found + at_higher_rates(table) + choice(table)


def tail_against_off(table: pd.DataFrame) -> Canvas:
    """Each arm's gain minus that of the default, with its interval, a panel per rate."""
    rows = compared(table)
    settings = sorted({row["arm"].split(": ")[0] for row in rows})
    names = sorted({_name(row) for row in rows}, reverse=True)
    canvas, axes = panels(len(settings), 3.6, 1.1 + 0.3 * len(names), sharey=True)
    for panel, setting in zip(axes.flat, settings, strict=True):
        for i, rank in enumerate(sorted({row["rank"] for row in rows})):
            ours = [row for row in rows if row["arm"].startswith(f"{setting}: ") and row["rank"] == rank]
            if not ours:
                continue
            heights = [names.index(_name(row)) + 0.2 * (i - 0.5) for row in ours]
            intervals(panel, [estimate(row) for row in ours], heights, i, ls="", label=f"rank {rank}")
        panel.axvline(0, color=COLOURS[-1], lw=0.8)
        panel.set_title(setting)
        panel.set_xlabel("gain minus that of the default")
    axes.flat[0].set_yticks(range(len(names)), names)
    axes.flat[0].set_ylim(-0.6, len(names) + 0.3)  # room for the legend
    axes.flat[0].legend(loc="upper left", ncols=2, columnspacing=1, handletextpad=0.2)
    return canvas


def _name(row: dict[str, Any]) -> str:
    """An arm without its rate, and its prompts a step where they are not 16."""
    arm = row["arm"].split(": ")[1]
    return arm if row["batch_size"] == 16 else f"{arm},\n{row['batch_size']} prompts"


FIGURES = (tail_against_off,)
