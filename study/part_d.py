"""Part D: tail inits with a frozen A. Verdicts on H8: the arms, the choice of checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from drawing import intervals
from runs import CELL, MARGIN, Row, against, estimate, mean_interval, verdict

from rankrl.report.figures.canvas import COLOURS, Canvas, panels
from rankrl.report.statistics.family import family_interval

OFF, DRAWN = "off", "kaiming_frozen"
PAPERS, MATCHED = "on_olora_tail_own_frozen", "olora_tail_frozen"
TWINS = {"rlmo_own_frozen": PAPERS, "rlmo_frozen": MATCHED}
"""Arms that train as another one, from the same frozen rows (docs/adapter.md): they count once."""
HIGHER = {"study_d_twice": "2e-3", "study_d_four": "4e-3"}
"""Sweeps beside the part, at rates above 1e-3."""
CHOSEN = 0.01
"""What the choice of the checkpoint adds at least (H8)."""


def prepared(table: pd.DataFrame) -> pd.DataFrame:
    """The part's runs, each arm named after its rate too: "measured rate: rlmo"."""
    rows = table[~table["sweep"].isin(HIGHER) & ~table["arm"].isin(TWINS)].copy()
    rows["setting"] = np.where(rows["sweep"].str.endswith("_inherited"), "rate of 1e-3", "measured rate")
    rows["arm"] = rows["setting"] + ": " + rows["arm"]
    rows["choice"] = rows["best_score"] - rows["final_score"]
    return rows


def of_h8(row: dict[str, Any]) -> bool:
    """Whether the hypothesis is about a comparison: a tail of W, with a frozen A, at rank 1."""
    return row["rank"] == 1 and row["arm"].endswith("_frozen") and DRAWN not in row["arm"]


def compared(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every arm minus `off` at the same rate, rank and batch size.

    Two families: what H8 is about, with half of the 5 %, as the choice has the other; and the rest.
    """
    rows = prepared(table)
    named = rows[["arm", "setting"]].drop_duplicates().itertuples(index=False)
    found = against(rows, [(arm, f"{rate}: {OFF}") for arm, rate in named if arm != f"{rate}: {OFF}"])
    ours = sum(map(of_h8, found))
    sizes = {True: 2 * ours, False: len(found) - ours}
    return [{**row, "family_ci95": family_interval(row, sizes[of_h8(row)])} for row in found]


def frozen_beside_drawn(table: pd.DataFrame) -> list[Row]:
    """With A frozen: rows of the tail minus drawn ones, each interval by itself."""
    rows = prepared(table)
    found = []
    for (rate, rank), of in rows[rows["batch_size"] == 16].groupby(["setting", "rank"]):
        gains = of.pivot(index="seed", columns="arm", values="gain")
        for arm in (PAPERS, MATCHED):
            if {one := f"{rate}: {arm}", other := f"{rate}: {DRAWN}"} <= {*gains}:
                found.append(
                    Row("singly", f"{one} minus {DRAWN}, rank {rank}", mean_interval(gains[one] - gains[other]))
                )
    return found


def at_higher_rates(table: pd.DataFrame) -> list[Row]:
    """What higher rates do to the paper's arm and `off`, seed by seed, each interval by itself."""
    at = table["sweep"].map(HIGHER).where(table["sweep"].isin(HIGHER), "1e-3")
    ours = table["sweep"].isin(HIGHER) | table["sweep"].str.endswith("_inherited")
    ours &= (table["rank"] == 1) & (table["batch_size"] == 16)
    gains = table.assign(at=at)[ours].pivot(index="seed", columns=["arm", "at"], values="gain")
    found: dict[str, pd.Series] = {}
    for rate in HIGHER.values():
        if not {(arm, of) for arm in (PAPERS, OFF) for of in (rate, "1e-3")} <= {*gains}:
            continue
        change = {arm: gains[arm, rate] - gains[arm, "1e-3"] for arm in (PAPERS, OFF)}
        found |= {f"{arm} at {rate} minus itself at 1e-3": values for arm, values in change.items()}
        found[f"{PAPERS} minus off, both at {rate}"] = gains[PAPERS, rate] - gains[OFF, rate]
        found[f"{PAPERS} at {rate} minus off at 1e-3"] = gains[PAPERS, rate] - gains[OFF, "1e-3"]
        found[f"from 1e-3 to {rate}: {PAPERS} minus off"] = change[PAPERS] - change[OFF]
    return [Row("singly", f"{what}, rank 1", mean_interval(values.dropna())) for what, values in found.items()]


def choice(table: pd.DataFrame) -> list[Row]:
    """What the best-on-evaluation checkpoint adds to the gain: the mean over arms, then each arm.

    Values that are all equal, as where the last checkpoint of every seed is the best one, have no
    interval. So that every arm adds more than .01 stands by the arms and falls with their mean: if
    that is below .01, so is an arm (plan, amendments). Runs that diverged have no checkpoints to
    choose from: they do not count for their arm, nor their arm for the mean.
    """
    rows = prepared(table)
    by_arm = {cell: values.dropna() for cell, values in rows.groupby(["arm", *CELL])["choice"] if values.notna().any()}
    each = {cell: mean_interval(values, 2 * len(by_arm)) for cell, values in by_arm.items()}
    each = {
        cell: adds if adds.low < adds.high else adds._replace(low=np.nan, high=np.nan) for cell, adds in each.items()
    }
    whole = rows.pivot(index="seed", columns=["arm", *CELL], values="choice").dropna(axis=1)
    mean = mean_interval(whole.mean(axis=1), 2)
    word = verdict(all(adds.low > CHOSEN for adds in each.values()), mean.high < CHOSEN)
    what = "best checkpoint minus last one"
    over_all = f"{what}, mean over {len(whole.columns)} of arm, rate, rank and batch"
    return [
        Row("H8, choice", over_all, mean, word),
        *(
            Row("beside H8", f"{arm}, rank {rank}, batch {batch_size}: {what}", adds)
            for (arm, rank, batch_size), adds in each.items()
        ),
    ]


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H8: refuted by an arm that is above the default, or by a choice that adds less than .01."""
    found = []
    for row in compared(table):
        difference = estimate(row)
        what = f"{row['arm']} minus off, rank {row['rank']}, batch {row['batch_size']}"
        hypothesis, word = "beside H8", ""
        if of_h8(row):
            hypothesis, word = "H8", verdict(difference.high < MARGIN, difference.low > 0)
        found.append(Row(hypothesis, what, difference, word))
    return found + frozen_beside_drawn(table) + at_higher_rates(table) + choice(table)


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
