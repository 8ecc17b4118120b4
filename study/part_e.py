"""Part E: adapters smaller than rank 1. Verdicts on H9, and the gain by number of parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd
from drawing import upright_intervals
from runs import Row, against, estimate, mean_interval, verdict

from rankrl.report.figures.canvas import LINES, Canvas, panels

BUDGETS = ("half", "quarter", "eighth")
WAYS = {"measured": "where a measurement prefers", "lot": "by lot", "reversed": "where it prefers least"}
UNIFORM = "uniform"


def compared(table: pd.DataFrame) -> list[dict[str, Any]]:
    """At every budget measured minus by lot, by lot minus reversed: one family."""
    pairs = {f"{budget}_measured": f"{budget}_lot" for budget in BUDGETS}
    return against(table, pairs | {f"{budget}_lot": f"{budget}_reversed" for budget in BUDGETS})


def verdicts(table: pd.DataFrame) -> list[Row]:
    """H9 at a quarter of rank 1, and at the other budgets; then every arm against rank 1."""
    found = []
    for row in compared(table):
        difference = estimate(row)
        ours = row["arm"].startswith("quarter")
        what = f"{row['arm']} minus {row['against']}, parameters x {row['params_ratio']:.2f}"
        word = verdict(difference.low > 0, difference.high <= 0 or difference.within) if ours else ""
        found.append(Row("H9" if ours else "beside H9", what, difference, word))
    others = [arm for arm in table["arm"].unique() if arm != UNIFORM]
    rows = sorted(against(table, dict.fromkeys(others, UNIFORM)), key=lambda row: -row["params_ratio"])
    smaller = [Row("edge", f"{r['arm']} minus rank 1, parameters x {r['params_ratio']:.2f}", estimate(r)) for r in rows]
    return found + smaller


def gain_by_parameters(table: pd.DataFrame) -> Canvas:
    """Mean gain with its interval by trained parameters and way of allocation."""
    canvas, axes = panels(1, 6.4, 3.8)
    panel = axes[0, 0]

    of_arm = {arm: (mean_interval(rows["gain"]), rows["trainable_params"].mean()) for arm, rows in table.groupby("arm")}
    single = [arm for arm in of_arm if arm.startswith("only_")]
    lines = {name: [*(f"{budget}_{way}" for budget in BUDGETS[::-1]), UNIFORM] for way, name in WAYS.items()}
    for i, (name, arms) in enumerate({**lines, "one type of module": single}.items()):
        found, parameters = zip(*(of_arm[arm] for arm in arms if arm in of_arm), strict=True)
        upright_intervals(panel, found, parameters, i, ls="" if arms is single else LINES[i], label=name)
    for arm in single:
        found, parameters = of_arm[arm]
        place = parameters, found.mean
        panel.annotate(arm.removeprefix("only_"), place, xytext=(5, 3), textcoords="offset points", fontsize=8)
    panel.set_xscale("log", base=2)
    panel.set_xticks([1024, 2048, 4096, 7936], ["1,024", "2,048", "4,096", "7,936 (rank 1)"])
    panel.set_xlabel("trained parameters")
    panel.set_ylabel(f"gain, {table['seed'].nunique()} seeds, 95 %")
    panel.legend(loc="lower right")
    return canvas


FIGURES = (gain_by_parameters,)
