"""Which cells get the next seeds, and when to stop.

Allocation: OCBA (Chen et al. 2000), N_i / N_j = (sd_i / d_i)^2 / (sd_j / d_j)^2 with d_i the
distance to the best cell, and N_best = sd_best sqrt(sum (N_i / sd_i)^2). The sds are shrunk to
their pooled value; distances below the margin count as the margin.

Stopping: a t confidence sequence (Lai 1976; Wang and Ramdas 2024, 2310.03722) of every paired
difference, which stays valid however often one looks. It holds the values m with
(1 + n c^2)^(-1/2) [(1 + t^2/v) / (1 + t^2/(v (1 + n c^2)))]^(n/2) < 1/alpha, where t is the
t statistic of the n differences against a mean of m, v = n - 1, and c = 1 is the sd of the
standardised effect that is looked for.

Gains are those of runs that ended with a score. A cell with a run that diverged without one is
above no other: its gains are the survivors'. A cell without any gain gets no seeds.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np

from rankrl.report.statistics.cells import CELL, Result, by_key, with_gain
from rankrl.report.statistics.intervals import EQUAL, shrunk
from rankrl.report.statistics.limits import DEFAULT

ALPHA = 0.05
Cell = tuple[str, int, int]


def half_sequence(sd: float, n: int, alpha: float) -> float:
    """Half-width of the t confidence sequence at n values; infinite while it excludes no mean."""
    if n < 2 or sd <= EQUAL:
        return inf
    grown = 1 + n
    ratio = (sqrt(grown) / alpha) ** (2 / n)
    return inf if ratio >= grown else sqrt((ratio - 1) / (1 - ratio / grown) * (n - 1) / n) * sd


def ocba(means: list[float], sds: list[float], total: int) -> list[float]:
    """OCBA allocation: seeds of each cell, as real numbers that sum to `total`.

    It is made to tell the best cell from the others.
    """
    best = int(np.argmax(means))
    distance = np.maximum(np.max(means) - np.array(means), DEFAULT.margin)
    sd = np.maximum(np.array(sds), EQUAL)
    share = (sd / distance) ** 2
    others = np.arange(len(means)) != best
    share[best] = sd[best] * sqrt(float(((share[others] / sd[others]) ** 2).sum())) if others.any() else 1.0
    return (total * share / share.sum()).tolist()


def below(results: list[Result]) -> dict[Cell, str]:
    """Cells that another cell is above: cell -> text with that cell and the difference.

    Valid whenever one looks, for all pairs of cells at once (union bound, level 1 - ALPHA).
    """
    cells = by_key(results, CELL)
    seeds = {seed: i for i, (seed,) in enumerate(by_key(results, ("seed",)))}
    gains_CS = np.full((len(cells), len(seeds)), np.nan)
    for gains_S, runs in zip(gains_CS, cells.values(), strict=True):
        for run in with_gain(runs):
            gains_S[seeds[run["seed"]]] = run["gain"]
    names = list(cells)
    order = leaders(gains_CS, [len(with_gain(runs)) == len(runs) for runs in cells.values()])
    alpha = ALPHA / max(1, len(cells) * (len(cells) - 1) / 2)
    unit_N = np.array([half_sequence(1.0, n, alpha) for n in range(len(seeds) + 1)])
    out: dict[Cell, str] = {}
    for cell, gains_S in zip(names, gains_CS, strict=True):
        if not np.isfinite(gains_S).any():
            out[cell] = "no run of it ended with a score"
            continue
        leads_C = _leads(gains_CS[order] - gains_S, unit_N)
        if leads_C.any():
            leader = order[np.argmax(leads_C > 0)]
            out[cell] = f"below {_name(names[leader])} by {leads_C[leads_C > 0][0]:.3f}"
    return out


def leaders(gains_CS: np.ndarray, complete: list[bool]) -> np.ndarray:
    """Cells all of whose runs ended with a score, the highest mean first."""
    able = np.flatnonzero(complete)
    return able[np.argsort(-np.nanmean(gains_CS[able], axis=1), kind="stable")] if len(able) else able


def _leads(differences_CS: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
    """Mean differences `[C]` over common seeds where their confidence sequence is above 0, else 0.

    `unit_N`: half-width of the confidence sequence for an sd of 1 at n seeds.
    """
    has_CS = np.isfinite(differences_CS)
    n_C = has_CS.sum(1)
    given_CS, several = np.where(has_CS, differences_CS, 0.0), np.maximum(n_C, 2)
    mean_C = given_CS.sum(1) / several
    sd_C = np.sqrt((np.where(has_CS, given_CS - mean_C[:, None], 0.0) ** 2).sum(1) / (several - 1))
    shown = (n_C > 1) & (sd_C > EQUAL)
    reach_C = np.full(len(n_C), np.inf)
    reach_C[shown] = unit_N[n_C[shown]] * sd_C[shown]
    return np.where(mean_C > reach_C, mean_C, 0.0)


def propose_more(results: list[Result], budget: int, kept_back: list[int]) -> dict[str, Any]:
    """`propose` without the seeds in `kept_back`: their runs are ignored, and none is assigned.

    These seeds take no part in choosing cells (recipe section `stages`).
    """
    choosing = [result for result in results if result["seed"] not in kept_back]
    able = _from_the_first(choosing, len(kept_back) + budget)
    return propose(choosing, budget, [seed for seed in able if seed not in kept_back])


def _from_the_first(results: list[Result], more: int) -> range:
    """As many seeds as there are and `more`, from the first one on."""
    seeds = {result["seed"] for result in results}
    first = min(seeds, default=0)
    return range(first, first + len(seeds) + max(more, 0))


def propose(results: list[Result], budget: int, seeds: list[int] | None = None) -> dict[str, Any]:
    """The cells that should get the next `budget` runs, or that the sweep may stop.

    Returns {stop, why, cells: [{arm, rank, batch_size, n_seeds, mean_gain, sd, add, seeds, why}],
    below: [{arm, rank, batch_size, why}]}. `seeds`: those that may be assigned; default: as many as
    needed, from the first one of `results`. A cell gets the first seeds that it has not had, so
    that cells keep sharing seeds. Raises ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"--budget: got {budget}, allowed: a number of runs, at least 1")
    cells = by_key(results, CELL)
    lower = below(results)
    open_cells = {cell: runs for cell, runs in cells.items() if cell not in lower}
    said = [{**dict(zip(CELL, cell, strict=True)), "why": why} for cell, why in lower.items()]
    if len(open_cells) == 1 and len(cells) > 1:
        (best,) = open_cells
        return {"stop": True, "why": f"{_name(best)} is above every other cell", "cells": [], "below": said}
    rows = _rows(open_cells, budget, [*_from_the_first(results, budget)] if seeds is None else seeds)
    why = f"{len(open_cells)} of {len(cells)} cells may be the best"
    if not rows:
        return {"stop": True, "why": f"{why}, and no seed is left to give them", "cells": [], "below": said}
    return {"stop": False, "why": why, "cells": rows, "below": said}


def _rows(cells: dict[Any, list[Result]], budget: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Rows of the open cells that get seeds, with the seeds that each gets."""
    gains = [[run["gain"] for run in with_gain(runs)] for runs in cells.values()]
    means = [float(np.mean(values)) for values in gains]
    raw = [float(np.var(values, ddof=1)) if len(values) > 1 else 0.0 for values in gains]
    sds = [sqrt(v) for v in shrunk(raw, [len(values) - 1 for values in gains])]
    target = ocba(means, sds, budget + sum(map(len, gains)))
    pools = [_unused(runs, budget, seeds) for runs in cells.values()]
    add = deal([t - len(values) for t, values in zip(target, gains, strict=True)], [len(p) for p in pools], budget)
    best = max(means)
    rows = []
    for cell, mean, sd, n, pool in zip(cells, means, sds, add, pools, strict=True):
        lead = "the best so far" if mean == best else f"{best - mean:.3f} behind the best"
        row = {**dict(zip(CELL, cell, strict=True)), "n_seeds": len(cells[cell]), "mean_gain": mean, "sd": sd}
        rows.append(row | {"add": n, "seeds": pool[:n], "why": f"{lead}, sd {sd:.3f}"})
    return [row for row in rows if row["add"]]


def _unused(runs: list[Result], budget: int, seeds: list[int]) -> list[int]:
    used = {run["seed"] for run in runs}
    return [seed for seed in seeds if seed not in used][:budget]


def deal(wanted: list[float], most: list[int], budget: int) -> list[int]:
    """Number of seeds for each cell; at most `budget` in all, and at most `most` for each cell.

    Seeds are dealt one by one, each to the cell that lacks most of the number in `wanted`.
    """
    given = [0] * len(wanted)
    for _ in range(budget):
        able = [i for i in range(len(wanted)) if given[i] < most[i]]
        if not able:
            break
        given[max(able, key=lambda i: wanted[i] - given[i])] += 1
    return given


def _name(cell: Cell) -> str:
    arm, rank, batch_size = cell
    return (f"arm {arm}, " if arm else "") + f"rank {rank}, batch {batch_size}"
