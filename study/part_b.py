"""Part B: which interventions help rank 1? Verdicts on H5 and H6, and every arm."""

from __future__ import annotations

from typing import Any

import pandas as pd
from drawing import intervals
from runs import MARGIN, Row, against, difference, estimate, verdict

from rankrl.report.figures.canvas import COLOURS, Canvas, panels

SECTIONS = {"init": "initialisation", "optim": "optimisation", "variance": "variance", "allocation": "allocation"}
SETTINGS = {"": "", "_twice": " at twice the rate", "_hard": " on nano-hard"}
"""What the name of a sweep ends in, and how it is told. Each is a family of its own."""
OFF = "off"
H6 = ("init", "optim")
"""Sections whose arms H6 is about."""


def arms(table: pd.DataFrame) -> pd.DataFrame:
    """The ablations at rank 1, each arm named after its section too: "init: on".

    Sweeps of another setting are sections of their own: "init on nano-hard: on". An arm that
    averages its adapters counts with the average, since it trains as `off` does.
    """
    named = {f"ablate_{section}{end}": section + told for section in SECTIONS for end, told in SETTINGS.items()}
    rows = table[(table["rank"] == 1) & table["sweep"].isin(named.keys())].copy()
    rows["section"] = rows["sweep"].map(named)
    rows["arm"] = rows["section"] + ": " + rows["arm"]
    if "average_score" in rows:
        rows["gain"] = (rows["average_score"] - rows["base_score"]).fillna(rows["gain"])
    return rows


def compared(table: pd.DataFrame, setting: str) -> list[dict[str, Any]]:
    """Every arm of a setting minus the `off` of its section, best first.

    H6's arms are a family of their own.
    """
    rows = arms(table)
    rows = rows[rows["section"].isin([section + setting for section in SECTIONS])]
    of_h6 = rows["section"].isin(H6)
    found = [row for family in (rows[of_h6], rows[~of_h6]) for row in against(family, pairs_with_off(family))]
    return sorted(found, key=lambda row: -row["mean_difference"])


def behind_rank_32(table: pd.DataFrame) -> list[Row]:
    """What the default loses at rank 1 in each setting, where rank 32 was run."""
    found = []
    for end, told in SETTINGS.items():
        one = (table["sweep"] == f"ablate_init{end}") & (table["arm"] == OFF) & (table["rank"] == 1)
        other = (table["sweep"] == f"low_rank{end}") & (table["rank"] == 32)
        if one.any() and other.any():
            found.append(Row("beside H6", f"the default at rank 1 minus rank 32{told}", difference(table, one, other)))
    return found


def pairs_with_off(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Every arm with the `off` of its section."""
    pairs = rows[["arm", "section"]].drop_duplicates().itertuples(index=False)
    return [(arm, f"{section}: {OFF}") for arm, section in pairs if arm != f"{section}: {OFF}"]


def more_prompts(table: pd.DataFrame) -> list[Row]:
    """H5: 32 prompts x 4 samples minus 16 x 8, both with a mean of the group as baseline."""
    pair = ("variance: fewer_samples", "variance: group_mean")
    rows = arms(table)
    found = [estimate(row) for row in against(rows[rows["arm"].isin(pair)], [pair])]
    words = [verdict(one.low > 0, one.high < MARGIN) for one in found]
    return [Row("H5", "32 prompts x 4 samples minus 16 x 8", *pair) for pair in zip(found, words, strict=True)]


def helped(row: dict[str, Any]) -> Row:
    """An arm's line; those of H6 say whether the arm refutes it."""
    found, what = estimate(row), f"{row['arm']} minus off"
    if row["arm"].split(":")[0] not in H6:
        return Row("beside H6", what, found)
    return Row("H6", what, found, verdict(found.high < MARGIN, found.low > MARGIN))


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H5, then every arm; H6 stands where each arm of initialisation and optimisation lets it."""
    rows = [row for setting in SETTINGS.values() for row in compared(table, setting)]
    return more_prompts(table) + behind_rank_32(table) + [helped(row) for row in rows]


def arms_against_off(table: pd.DataFrame) -> Canvas:
    """Each arm's gain minus that of the default at rank 1, with the interval of its family."""
    found = {setting: rows[::-1] for setting in SETTINGS.values() if (rows := compared(table, setting))}
    canvas, axes = panels(len(found), 7.2, 0.6 + 0.19 * max(map(len, found.values())))
    for panel, (setting, rows) in zip(axes.flat, found.items(), strict=True):
        for i, (section, name) in enumerate(SECTIONS.items()):
            places = [y for y, row in enumerate(rows) if row["arm"].startswith(f"{section}{setting}:")]
            if places:
                intervals(panel, [estimate(rows[y]) for y in places], places, i, ls="", label=name)
        named = [f"{row['arm'].split(': ')[1]} ({row['n_pairs']})" for row in rows]
        panel.set_yticks(range(len(rows)), named, fontsize=8)
        panel.axvline(0, color=COLOURS[-1], lw=0.8)
        panel.axvspan(-MARGIN, MARGIN, color=COLOURS[-1], alpha=0.08, lw=0)
        panel.set_title(setting.strip() or "nano")
        panel.set_xlabel("gain minus that of the default at rank 1 (seeds), family-wise 95 %")
        panel.legend(loc="upper left")
    return canvas


FIGURES = (arms_against_off,)
