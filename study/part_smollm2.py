"""The check of direction on SmolLM2: the default at ranks 1 and 32. No hypothesis is about it."""

from __future__ import annotations

import pandas as pd
from runs import Estimate, Row, mean_interval, spread_ratio

from rankrl.report.statistics.intervals import clopper_pearson

MAIN, HALF = "smollm2", "smollm2_half"


def cell(name: str, gains: pd.Series) -> list[Row]:
    """The mean gain of a cell, and the share of its runs below the base."""
    below, n = int((gains < 0).sum()), len(gains)
    share = Estimate(n, below / n, *clopper_pearson(below, n))
    return [
        Row("direction", f"gain of {name}", mean_interval(gains)),
        Row("direction", f"share of runs of {name} below the base", share),
    ]


def verdicts(table: pd.DataFrame) -> list[Row]:
    """Gain and runs below the base of each rank, and of rank 1 at half the rate.

    With them what one of them gains more than another, and how many times as far its seeds spread.
    """
    cells = {where: rows.set_index("seed")["gain"] for where, rows in table.groupby(["sweep", "rank"])}
    names = {(MAIN, 1): "rank 1", (MAIN, 32): "rank 32", (HALF, 1): "rank 1 at half the rate"}
    found = [row for where, name in names.items() if where in cells for row in cell(name, cells[where])]
    for one, other in (((MAIN, 1), (MAIN, 32)), ((HALF, 1), (MAIN, 1)), ((HALF, 1), (MAIN, 32))):
        if not {one, other} <= cells.keys():
            continue
        more, spread = (cells[one] - cells[other]).dropna(), spread_ratio(cells[one], cells[other])
        found.append(Row("direction", f"gain of {names[one]} minus {names[other]}", mean_interval(more)))
        found.append(Row("direction", f"sd over seeds of {names[one]}, over that of {names[other]}", spread))
    return found


FIGURES = ()
