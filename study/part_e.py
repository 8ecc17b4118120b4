"""Part E: adapters smaller than rank 1. Verdicts on H9, and the gain by number of parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd
from drawing import upright_intervals
from runs import MARGIN, Row, against, estimate, mean_interval, spread_ratio, verdict

from rankrl.report.figures.canvas import LINES, Canvas, panels

BUDGETS = ("half", "quarter", "eighth")
WAYS = {"measured": "where a measurement prefers", "lot": "by lot", "reversed": "where it prefers least"}
UNIFORM = "uniform"


def compared(table: pd.DataFrame, budget: str) -> list[dict[str, Any]]:
    """Measured minus by lot, measured minus reversed, by lot minus reversed, at a budget."""
    pairs = [("measured", "lot"), ("measured", "reversed"), ("lot", "reversed")]
    return against(table, [(f"{budget}_{one}", f"{budget}_{other}") for one, other in pairs])


def counts(row: dict[str, Any]) -> bool:
    """Whether the larger gain is not that of the larger adapter (plan, amendments)."""
    return row["params_ratio"] <= 1 if row["mean_difference"] > 0 else row["params_ratio"] >= 1


def where_it_matters(table: pd.DataFrame) -> str:
    """The verdict on H9, which is about a quarter of rank 1."""
    found = {(row["arm"], row["against"]): row for row in compared(table, "quarter")}
    better = {pair: counts(row) and estimate(row).low > 0 for pair, row in found.items()}
    measured = [pair for pair in found if pair[0] == "quarter_measured"]
    stands = all(
        better.get(pair) for pair in (("quarter_measured", "quarter_lot"), ("quarter_lot", "quarter_reversed"))
    )
    refuted = len(measured) == 2 and all(estimate(found[pair]).high < MARGIN for pair in measured)
    return verdict(stands, refuted)


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H9 at a quarter of rank 1, and at the other budgets; then every arm against rank 1."""
    found, h9 = [], where_it_matters(table)
    for budget in BUDGETS:
        for row in compared(table, budget):
            ours = budget == "quarter"
            what = f"{row['arm']} minus {row['against']}, parameters x {row['params_ratio']:.2f}"
            what += "" if counts(row) else " (the larger adapter is the better one)"
            found.append(Row("H9" if ours else "beside H9", what, estimate(row), h9 if ours else ""))
    others = [(arm, UNIFORM) for arm in table["arm"].unique() if arm != UNIFORM]
    rows = sorted(against(table, others), key=lambda row: -row["params_ratio"])
    smaller = [Row("edge", f"{r['arm']} minus rank 1, parameters x {r['params_ratio']:.2f}", estimate(r)) for r in rows]
    return found + smaller + spreads(table)


def spreads(table: pd.DataFrame) -> list[Row]:
    """The sd over seeds of what a measurement places, by budget, over that of rank 1."""
    gains = {arm: rows["gain"] for arm, rows in table.groupby("arm")}
    arms = [arm for arm in (f"{budget}_measured" for budget in BUDGETS) if {arm, UNIFORM} <= gains.keys()]
    return [
        Row("edge", f"sd over seeds of {arm}, over that of rank 1", spread_ratio(gains[arm], gains[UNIFORM]))
        for arm in arms
    ]


def gain_by_parameters(table: pd.DataFrame) -> Canvas:
    """Mean gain with its interval by trained parameters and way of allocation."""
    canvas, axes = panels(1, 6.4, 3.8)
    panel = axes[0, 0]

    of_arm = {arm: (mean_interval(rows["gain"]), rows["trainable_params"].mean()) for arm, rows in table.groupby("arm")}
    single = [arm for arm in of_arm if arm.startswith("only_")]
    lines = {name: [*(f"{budget}_{way}" for budget in BUDGETS[::-1]), UNIFORM] for way, name in WAYS.items()}
    for i, (name, arms) in enumerate({**lines, "one type of module": single}.items()):
        if not (points := [of_arm[arm] for arm in arms if arm in of_arm]):
            continue
        found, parameters = zip(*points, strict=True)
        upright_intervals(panel, found, parameters, i, ls="" if arms is single else LINES[i], label=name)
    for i, arm in enumerate(sorted(single, key=lambda arm: of_arm[arm][0].mean)):  # near ones: below and above
        found, parameters = of_arm[arm]
        offset = (5, 3 if i % 2 else -9)
        place = parameters, found.mean
        panel.annotate(arm.removeprefix("only_"), place, xytext=offset, textcoords="offset points", fontsize=8)
    panel.set_xscale("log", base=2)
    panel.set_xticks([1024, 2048, 4096, 7936], ["1,024", "2,048", "4,096", "7,936 (rank 1)"])
    panel.set_xlabel("trained parameters")
    panel.set_ylabel(f"gain, {table['seed'].nunique()} seeds, 95 %")
    panel.legend(loc="lower right")
    return canvas


FIGURES = (gain_by_parameters,)
