"""Part A: where does the sweet spot of ranks come from? Verdicts on H1 to H4, and two figures."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd
from runs import MARGIN, Estimate, Row, difference, mean_interval, verdict

from rankrl.report.figures.canvas import COLOURS, MARKERS, Canvas, log2_axis, panels

EXPONENTS = {"constant": 0.0, "sqrt": 0.5, "proportional": 1.0}
NAMES = {"constant": "alpha constant", "sqrt": "alpha ~ sqrt r", "proportional": "alpha ~ r"}
RATES = ("quarter", "half", "once", "twice", "four")
WIDEST = 0.36
"""Gain of the darkest shade."""
INHERITED = 1e-3
"""The rate of rank 32."""


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """The grid of exponent, rank and rate, with the exponent's name in a column of its own.

    At rank 32 the exponents are one setting: where one of them was run, it stands for all. Ranks of
    which some of the planned runs are missing, on any of their seeds, are left out.
    """
    rows = table[table["sweep"] == "study_a"]
    once = rows[(rows["rank"] == 32) & rows["arm"].str.startswith("constant_")]
    copies = [once.assign(arm=once["arm"].str.replace("constant", name)) for name in EXPONENTS]
    rows = pd.concat([rows, *copies]).drop_duplicates(["arm", "rank", "seed"])
    rows["exponent"] = rows["arm"].str.split("_").str[0]
    arms = [f"{name}_{rate}" for name in EXPONENTS for rate in RATES]
    whole = [
        rank
        for rank, of in rows.groupby("rank")
        if {*product(arms, of["seed"])} <= {*zip(of["arm"], of["seed"], strict=True)}
    ]
    return rows[rows["rank"].isin(whole)]


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The best rate of each exponent, rank and seed."""
    rows = grid(table).sort_values("lr")  # of equal gains the lower rate
    return rows.loc[rows.groupby(["exponent", "rank", "seed"])["gain"].idxmax()]


def slopes(table: pd.DataFrame, exponent: str) -> np.ndarray:
    """Power of the rank in the best rate, by seed."""
    best = best_rates(table)
    found = [
        np.polyfit(np.log2(rows["rank"]), np.log2(rows["lr"]), 1)[0].round(9)  # 0 is 0
        for _, rows in best[best["exponent"] == exponent].groupby("seed")
    ]
    return np.array(found)


def at_edge(table: pd.DataFrame, exponent: str) -> int:
    """In how many ranks and seeds the best rate is the lowest or the highest of its grid."""
    rows, best = grid(table), best_rates(table)
    ends = rows.groupby(["exponent", "rank"])["lr"].agg(["min", "max"])
    ours = best[best["exponent"] == exponent]
    return sum(row.lr in tuple(ends.loc[(exponent, row.rank)]) for row in ours.itertuples())


def best_rate(table: pd.DataFrame, exponent: str, rank: int) -> float:
    """The rate with the highest mean gain at `rank`."""
    rows = grid(table)
    return rows[(rows["exponent"] == exponent) & (rows["rank"] == rank)].groupby("lr")["gain"].mean().idxmax()


def cell(rows: pd.DataFrame, exponent: str, rank: int, lr: float) -> pd.Series:
    return (rows["exponent"] == exponent) & (rows["rank"] == rank) & np.isclose(rows["lr"], lr)


def inherited(table: pd.DataFrame, exponent: str, rank: int, family: int) -> Estimate:
    """Gain at `rank` minus that at rank 32, both at the rate of rank 32."""
    rows = grid(table)
    return difference(rows, *(cell(rows, exponent, r, INHERITED) for r in (rank, 32)), family)


def at_the_best(table: pd.DataFrame, one: tuple[str, int], other: tuple[str, int], family: int) -> Estimate:
    """Gain of one (exponent, rank) minus that of another one, each at its best rate."""
    rows = grid(table)
    return difference(rows, *(cell(rows, *which, best_rate(table, *which)) for which in (one, other)), family)


def lost_to_the_batch(table: pd.DataFrame, kept: str, rate: str, rank: int) -> pd.Series:
    """Gain at batch 16 minus that at batch 64, by seed, at `rate` (once, twice) the best one.

    `kept` ("updates", "minibatch") is what the larger batch has in common with the smaller one.
    """
    gains = table[table["rank"] == rank].set_index(["sweep", "arm", "seed"], verify_integrity=True)["gain"].sort_index()
    return (gains["study_a", f"constant_{rate}"] - gains["study_a_batch", f"{kept}_{rate}"]).dropna()


def batches(table: pd.DataFrame) -> list[Row]:
    """H4: what rank 1 loses more than rank 32 where the batch grows from 16 to 64."""
    found = []
    for kept, rate in product(("minibatch", "updates"), ("twice", "once")):
        if not all((table["arm"] == arm).any() for arm in (f"{kept}_{rate}", f"constant_{rate}")):
            continue
        one, other = (lost_to_the_batch(table, kept, rate, rank) for rank in (1, 32))
        more = mean_interval((one - other).dropna())
        what = f"batch 16 minus 64, {kept} fixed, {rate} the best rate: rank 1 minus 32"
        if (kept, rate) == ("minibatch", "twice"):
            found.append(Row("H4", what, more, verdict(more.low > 0, more.high < MARGIN)))
        else:
            found.append(Row("beside H4", what, more))
    return found


def at_inherited_rate(table: pd.DataFrame, ranks: list[int]) -> list[Row]:
    """H1: with alpha ~ r, and beside it with other exponents."""
    found = []
    for exponent in ("proportional", "constant", "sqrt"):
        for rank in ranks:
            behind = inherited(table, exponent, rank, len(ranks))
            what = f"{NAMES[exponent]}, rate of rank 32: rank {rank} minus 32"
            ours = exponent == "proportional"
            word = verdict(behind.high < 0, behind.low > -MARGIN) if ours else ""
            found.append(Row("H1" if ours else "beside H1", what, behind, word))
    return found


def powers(table: pd.DataFrame) -> list[Row]:
    """H2: refuted as the plan says; it stands where the whole interval is near the prediction."""
    found = []
    for exponent, p in EXPONENTS.items():
        ends = f"{at_edge(table, exponent)} best rates at an end of the grid"
        what = f"{NAMES[exponent]}: power of the rank in the best rate, predicted {-p or 0:g} ({ends})"
        power = mean_interval(slopes(table, exponent), len(EXPONENTS))
        narrow = -p - 0.15 <= power.low and power.high <= -p + 0.15
        out = -p < power.low or -p > power.high or (p == 0 and (power.low < -0.15 or power.high > 0.15))
        found.append(Row("H2", what, power, verdict(narrow, out)))
    return found


def at_rank_1(table: pd.DataFrame) -> list[Row]:
    """H3: rank 1 at its best rate, by exponent."""
    found = []
    for one, other in combinations(EXPONENTS, 2):
        rates = " and ".join(f"{best_rate(table, exponent, 1):g}" for exponent in (one, other))
        what = f"rank 1, best rates ({rates}): {NAMES[one]} minus {NAMES[other]}"
        apart = at_the_best(table, (one, 1), (other, 1), 3)
        found.append(
            Row(
                "H3", what, apart, verdict(apart.low > -MARGIN and apart.high < MARGIN, apart.low > 0 or apart.high < 0)
            )
        )
    return found


def verdicts(table: pd.DataFrame) -> list[Row]:
    """What H1 to H4 stand or fall by, and whether ranks differ at the best rate of each."""
    ranks = [rank for rank in (1, 4, 256) if rank in set(grid(table)["rank"])]
    found = at_inherited_rate(table, [rank for rank in ranks if rank != 4]) + powers(table) + at_rank_1(table)
    for exponent in EXPONENTS:
        for rank in ranks:
            behind = at_the_best(table, (exponent, rank), (exponent, 32), len(ranks) * len(EXPONENTS))
            found.append(Row("sweet spot", f"{NAMES[exponent]}, best rate of each: rank {rank} minus 32", behind))
    return found + batches(table)


def ink(gain: float) -> str:
    """Colour of a gain on its own shade."""
    return "white" if abs(gain) > WIDEST / 2 else "black"


def gain_by_rank_and_rate(table: pd.DataFrame) -> Canvas:
    """Mean gain over rank and rate, a panel per exponent of alpha."""
    rows = grid(table)
    ranks, rates = sorted(rows["rank"].unique()), sorted(rows["lr"].unique())
    counts = rows.groupby("rank")["seed"].nunique()
    seeds = " to ".join(str(n) for n in sorted({counts.min(), counts.max()}))
    canvas, axes = panels(3, 3.1, 3.6, sharey=True)
    for panel, exponent in zip(axes.flat, EXPONENTS, strict=True):
        means = rows[rows["exponent"] == exponent].pivot_table(index="lr", columns="rank", values="gain")
        means = means.reindex(index=rates, columns=ranks)
        image = panel.pcolormesh(means.to_numpy(), cmap="RdBu", vmin=-WIDEST, vmax=WIDEST, edgecolors="white", lw=0.5)
        for (i, j), value in np.ndenumerate(means.to_numpy()):
            if np.isfinite(value):
                panel.text(j + 0.5, i + 0.5, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=ink(value))
        panel.set_xticks(np.arange(len(ranks)) + 0.5, ranks)
        panel.set_yticks(np.arange(len(rates)) + 0.5, [f"{rate:.3g}" for rate in rates])
        panel.set_xlabel("LoRA rank")
        panel.set_title(NAMES[exponent])
    axes.flat[0].set_ylabel("learning rate")
    canvas.colorbar(image, ax=list(axes.flat), label=f"mean gain, {seeds} seeds")
    return canvas


def best_rate_by_rank(table: pd.DataFrame) -> Canvas:
    """Every seed's best rate by rank, with the fitted power of each exponent."""
    best = best_rates(table)
    canvas, axes = panels(1, 5.6, 3.6)
    panel, rank = axes[0, 0], np.array([1.0, 256.0])
    for i, exponent in enumerate(EXPONENTS):
        rows, power = best[best["exponent"] == exponent], mean_interval(slopes(table, exponent), len(EXPONENTS))
        shift = 2 ** (0.12 * (i - 1))
        panel.plot(rows["rank"] * shift, rows["lr"], MARKERS[i], color=COLOURS[i], alpha=0.5, ms=5)
        centre = np.log2(rows["lr"]).mean() - power.mean * np.log2(rows["rank"]).mean()
        label = f"{NAMES[exponent]}: r^{power.mean:.2f} [{power.low:.2f}, {power.high:.2f}]"
        panel.plot(rank, 2 ** (centre + power.mean * np.log2(rank)), color=COLOURS[i], label=label)
    log2_axis(panel, [1, 4, 32, 256])
    panel.set_yscale("log", base=2)
    rates = sorted(best["lr"].unique())
    panel.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
    panel.set_ylabel("best rate, by seed")
    panel.legend()
    return canvas


FIGURES = (gain_by_rank_and_rate, best_rate_by_rank)
