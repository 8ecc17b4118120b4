"""The Pareto front of gain against tokens: cells that no cell of the same or lower cost matches.

Gains are those of the runs that ended with a score; tokens are those of all runs.

Axes: W resamples, C cells, S seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from rankrl.report.statistics.cells import CELL, Result, by_key

RESAMPLES = 500
TOLERANCE = 0.01
"""Share by which the tokens of two cells may differ and count as the same."""


def on_front(tokens: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which cells (last axis) have a higher value than every other that costs as much or less.

    Costs that differ by less than TOLERANCE are the same: of two such cells the one with the higher
    value stays. Returns booleans of the shape of `value`; a cell with a NaN value is never there.
    """
    value = np.where(np.isfinite(value), value, -np.inf)
    order = np.lexsort((-value, tokens))
    ranked = np.take_along_axis(value, order, -1)
    costs = np.take_along_axis(np.broadcast_to(tokens, value.shape), order, -1)
    highest = np.maximum.accumulate(ranked, axis=-1)
    start = np.full((*value.shape[:-1], 1), -np.inf)
    before = np.concatenate([start, highest[..., :-1]], axis=-1)
    alike = np.take_along_axis(highest, _last_alike(costs), -1)
    front = np.zeros(value.shape, dtype=bool)
    np.put_along_axis(front, order, (ranked > before) & (ranked >= alike), -1)
    return front


def _last_alike(costs: np.ndarray) -> np.ndarray:
    """Index of the last cell that costs the same as each one; `costs` rise along the last axis."""
    rows = costs.reshape(-1, costs.shape[-1])
    found = [np.searchsorted(row, row * (1 + TOLERANCE), side="right") - 1 for row in rows]
    return np.array(found).reshape(costs.shape)


def front_shares(results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Share of bootstrap resamples in which each cell is on the front.

    Returns (`[C]` by mean gain, `[C]` by the lower end of its 95 % t interval). Seeds are
    resampled, with the same draw for all cells.
    """
    cells = by_key(results, CELL)
    seeds = {seed: i for i, (seed,) in enumerate(by_key(results, ("seed",)))}
    run_CS, has_CS, gain_CS, tokens_CS = (np.zeros((len(cells), len(seeds))) for _ in range(4))
    for c, members in enumerate(cells.values()):
        for run in members:
            at = c, seeds[run["seed"]]
            run_CS[at], tokens_CS[at] = 1, run["tokens_total"]
            has_CS[at], gain_CS[at] = run["gain"] is not None, run["gain"] or 0.0
    drawn_WS = np.random.default_rng(0).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    n, drawn = drawn_WS @ has_CS.T, drawn_WS @ run_CS.T
    n[n == 0] = drawn[drawn == 0] = np.nan
    mean, tokens = drawn_WS @ gain_CS.T / n, drawn_WS @ tokens_CS.T / drawn
    spread = np.sqrt(np.maximum(drawn_WS @ (gain_CS**2).T / n - mean**2, 0) / np.where(n > 1, n - 1, np.nan))
    tokens = np.where(np.isfinite(tokens), tokens, np.inf)
    lower = mean - special.stdtrit(np.where(n > 1, n - 1, np.nan), 0.975) * spread
    return on_front(tokens, mean).mean(0), on_front(tokens, lower).mean(0)


def pareto_points(results: list[Result], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens, gain and membership of the front for each row of `cells`.

    `cells`: statistics by arm, rank and batch size, in ascending order. For the risk-averse front,
    the lower end of the gain's interval takes the place of the mean.
    """
    tokens = np.array([cell["mean_tokens"] for cell in cells], dtype=float)
    mean = np.array([np.nan if cell["mean_gain"] is None else cell["mean_gain"] for cell in cells])
    lower = np.array([cell["gain_ci95"][0] if cell["gain_ci95"] else np.nan for cell in cells])
    shares = front_shares(results)
    rows = []
    for i, (front, averse) in enumerate(zip(on_front(tokens, mean), on_front(tokens, lower), strict=True)):
        cell = cells[i]
        rows.append(
            {key: cell[key] for key in (*CELL, "mean_tokens", "mean_gain")}
            | {"lower_gain": cell["gain_ci95"][0] if cell["gain_ci95"] else None, "risk": cell["negative_gain_risk"]}
            | {"on_front": bool(front), "on_front_risk_averse": bool(averse)}
            | {"front_share": float(shares[0][i]), "front_share_risk_averse": float(shares[1][i])}
        )
    return rows


def pareto(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells on the front by rising token cost.

    Each row gives the best mean gain for its number of tokens per run.
    """
    front = sorted((point for point in points if point["on_front"]), key=lambda point: point["mean_tokens"])
    return [
        {"token_budget": point["mean_tokens"], **{key: point[key] for key in (*CELL, "mean_gain")}} for point in front
    ]
