"""Part A: where does the sweet spot of ranks come from? Verdicts on H1 to H3, and two figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from runs import Estimate, difference, mean_interval

from rankrl.report.figures.canvas import COLOURS, MARKERS, Canvas, log2_axis, panels

EXPONENTS = {"constant": 0.0, "sqrt": 0.5, "proportional": 1.0}
NAMES = {"constant": "alpha constant", "sqrt": "alpha ~ sqrt r", "proportional": "alpha ~ r"}
INHERITED = 1e-3
"""The rate of rank 32."""


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """The grid of exponent, rank and rate, with the exponent's name in a column of its own."""
    rows = table[table["sweep"] == "study_a"].copy()
    rows["exponent"] = rows["arm"].str.split("_").str[0]
    return rows


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The best rate of each exponent, rank and seed."""
    rows = grid(table)
    return rows.loc[rows.groupby(["exponent", "rank", "seed"])["gain"].idxmax()]


def slopes(table: pd.DataFrame, exponent: str) -> np.ndarray:
    """Power of the rank in the best rate, by seed."""
    best = best_rates(table)
    found = [
        np.polyfit(np.log2(rows["rank"]), np.log2(rows["lr"]), 1)[0]
        for _, rows in best[best["exponent"] == exponent].groupby("seed")
    ]
    return np.array(found)


def best_arms(table: pd.DataFrame, rank: int) -> dict[str, float]:
    """Exponent -> the rate with the highest mean gain at `rank`."""
    rows = grid(table)
    means = rows[rows["rank"] == rank].groupby(["exponent", "lr"])["gain"].mean()
    return {exponent: means[exponent].idxmax() for exponent in EXPONENTS}


def verdicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of H1 to H3: hypothesis, what, n (seeds), mean, low and high of its interval."""
    rows, found = grid(table), []

    def said(hypothesis: str, what: str, values: Estimate) -> None:
        found.append({"hypothesis": hypothesis, "what": what, **values._asdict()})

    def cell(exponent: str, rank: int, lr: float) -> pd.Series:
        return (rows["exponent"] == exponent) & (rows["rank"] == rank) & np.isclose(rows["lr"], lr)

    for rank in (1, 256):
        for exponent in EXPONENTS:
            values = difference(rows, cell(exponent, rank, INHERITED), cell(exponent, 32, INHERITED))
            said("H1", f"{NAMES[exponent]}, inherited rate: rank {rank} minus 32", values)
    for exponent, p in EXPONENTS.items():
        said(
            "H2",
            f"{NAMES[exponent]}: power of the rank in the best rate; predicted {-p}",
            mean_interval(slopes(table, exponent)),
        )
    best = best_arms(table, 1)
    for one, other in (("constant", "sqrt"), ("constant", "proportional"), ("sqrt", "proportional")):
        values = difference(rows, cell(one, 1, best[one]), cell(other, 1, best[other]))
        said(
            "H3",
            f"rank 1 at its best rates: {NAMES[one]} ({best[one]:g}) minus {NAMES[other]} ({best[other]:g})",
            values,
        )
    for exponent in EXPONENTS:
        own = {rank: best_arms(table, rank)[exponent] for rank in (1, 32, 256)}
        for rank in (1, 256):
            values = difference(rows, cell(exponent, rank, own[rank]), cell(exponent, 32, own[32]))
            said("sweet spot", f"{NAMES[exponent]}, best rate of each: rank {rank} minus 32", values)
    return found


def gain_by_rank_and_rate(table: pd.DataFrame) -> Canvas:
    """Mean gain over rank and rate, a panel per exponent of alpha."""
    rows = grid(table)
    ranks, rates = sorted(rows["rank"].unique()), sorted(rows["lr"].unique())
    canvas, axes = panels(3, 3.1, 3.6, sharey=True)
    for panel, exponent in zip(axes.flat, EXPONENTS, strict=True):
        means = rows[rows["exponent"] == exponent].pivot_table(index="lr", columns="rank", values="gain")
        means = means.reindex(index=rates, columns=ranks)
        image = panel.pcolormesh(means.to_numpy(), cmap="RdBu", vmin=-0.32, vmax=0.32, edgecolors="white", lw=0.5)
        for (i, j), value in np.ndenumerate(means.to_numpy()):
            if np.isfinite(value):
                panel.text(j + 0.5, i + 0.5, f"{value:+.2f}", ha="center", va="center", fontsize=8)
        panel.set_xticks(np.arange(len(ranks)) + 0.5, ranks)
        panel.set_yticks(np.arange(len(rates)) + 0.5, [f"{rate:.3g}" for rate in rates])
        panel.set_xlabel("LoRA rank")
        panel.set_title(NAMES[exponent])
    axes.flat[0].set_ylabel("learning rate")
    canvas.colorbar(image, ax=list(axes.flat), label="mean gain, 4 seeds")
    return canvas


def best_rate_by_rank(table: pd.DataFrame) -> Canvas:
    """Every seed's best rate by rank, with the fitted power of each exponent."""
    best = best_rates(table)
    canvas, axes = panels(1, 5.6, 3.6)
    panel, rank = axes[0, 0], np.array([1.0, 256.0])
    for i, exponent in enumerate(EXPONENTS):
        rows, power = best[best["exponent"] == exponent], mean_interval(slopes(table, exponent))
        shift = 2 ** (0.12 * (i - 1))
        panel.plot(rows["rank"] * shift, rows["lr"] * shift, MARKERS[i], color=COLOURS[i], alpha=0.5, ms=5)
        centre = np.log2(rows["lr"]).mean() - power.mean * np.log2(rows["rank"]).mean()
        label = f"{NAMES[exponent]}: r^{power.mean:.2f} [{power.low:.2f}, {power.high:.2f}]"
        panel.plot(rank, 2 ** (centre + power.mean * np.log2(rank)), color=COLOURS[i], label=label)
    log2_axis(panel, [1, 4, 32, 256])
    panel.set_yscale("log", base=2)
    rates = sorted(best["lr"].unique())
    panel.set_yticks(rates, [f"{rate:.3g}" for rate in rates])
    panel.set_ylabel("best of five rates, by seed")
    panel.legend()
    return canvas


FIGURES = (gain_by_rank_and_rate, best_rate_by_rank)
