"""The check of direction on SmolLM2: the default at ranks 1 and 32. No hypothesis is about it."""

from __future__ import annotations

import pandas as pd
from runs import Estimate, Row, mean_interval, spread_ratio

from rankrl.report.statistics.intervals import clopper_pearson


def verdicts(table: pd.DataFrame) -> list[Row]:
    """Gain and runs below the base of each rank; what rank 1 gains more than rank 32, seed by seed.

    With it, how many times as far its seeds spread.
    """
    gains = {rank: rows.set_index("seed")["gain"] for rank, rows in table.groupby("rank")}
    found = []
    for rank, values in gains.items():
        below, n = int((values < 0).sum()), len(values)
        found.append(Row("direction", f"gain of rank {rank}", mean_interval(values)))
        share = Estimate(n, below / n, *clopper_pearson(below, n))
        found.append(Row("direction", f"share of runs of rank {rank} below the base", share))
    if {1, 32} <= gains.keys():
        found.append(Row("direction", "gain of rank 1 minus rank 32", mean_interval((gains[1] - gains[32]).dropna())))
        found.append(
            Row("direction", "sd over seeds of rank 1, over that of rank 32", spread_ratio(gains[1], gains[32]))
        )
    return found


FIGURES = ()
