"""The check of direction on SmolLM2: the default at ranks 1 and 32. No hypothesis is about it."""

from __future__ import annotations

import pandas as pd
from runs import Row, mean_interval


def verdicts(table: pd.DataFrame) -> list[Row]:
    """The gain of each rank, and what rank 1 gains more than rank 32, seed by seed."""
    gains = {rank: rows.set_index("seed")["gain"] for rank, rows in table.groupby("rank")}
    found = [Row("direction", f"gain of rank {rank}", mean_interval(values)) for rank, values in gains.items()]
    if {1, 32} <= gains.keys():
        found.append(Row("direction", "gain of rank 1 minus rank 32", mean_interval((gains[1] - gains[32]).dropna())))
    return found


FIGURES = ()
