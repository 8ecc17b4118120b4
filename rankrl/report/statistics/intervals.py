"""Estimates and 95 % intervals of samples of runs. Formulas and sources: docs/rules.md 6."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, comb, log, sqrt
from typing import Any

import numpy as np
from scipy import special, stats

LEVEL = 0.95
RESAMPLES = 1000
PRIOR_FREEDOM = 4
EQUAL = 1e-9
"""Gains that differ by less are equal: scores lie on a grid, and a few seeds with one value are no certainty."""


def t_quantile(p: float, freedom: int) -> float:
    """Of Student's t; a twentieth of the time of scipy.stats.t.ppf."""
    return float(special.stdtrit(freedom, p))


def t_interval(values: Any, level: float = LEVEL) -> list[float] | None:
    """Student t interval of the mean; None with fewer than two values, or where all are equal."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or np.ptp(x) <= EQUAL:
        return None
    half = t_quantile((1 + level) / 2, len(x) - 1) * float(x.std(ddof=1)) / sqrt(len(x))
    return [float(x.mean()) - half, float(x.mean()) + half]


def clopper_pearson(events: float, n: int) -> list[float]:
    """Exact interval of a proportion (Clopper and Pearson 1934). `events` may be a sum of shares, as in Korn and Graubard 1998."""
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(events, n - events + 1, tail) if events > 0 else 0.0
    high = special.betaincinv(events + 1, n - events, 1 - tail) if events < n else 1.0
    return [float(low), float(high)]


def expected_max(values: Any, k: int) -> float:
    """Expected best of k runs, unbiased: sum over i of C(i-1, k-1)/C(n, k) x_(i) (Tang et al. 2020, 2004.13705)."""
    x = np.sort(np.asarray(values, dtype=float))
    n = len(x)
    if n > 1000:  # the same weights, in logarithms: C(n, k) is beyond floats
        i = np.arange(k, n + 1)
        weights = np.exp(special.gammaln(i) - special.gammaln(i - k + 1) - special.gammaln(k))
        return float(weights / weights.sum() @ x[k - 1 :])
    return float(sum(comb(i, k - 1) / comb(n, k) * x[i] for i in range(k - 1, n)))


@lru_cache(maxsize=256)
def upside_null(n: int) -> tuple[float, float] | None:
    """Where (best - mean) / sd of n normal values lies, 95 %, by simulation (seeded). None below three values.

    At n = 6: 0.81 to 1.89. A gap between best and mean inside says nothing of latent upside.
    """
    if n < 3:
        return None
    z = np.random.default_rng(n).standard_normal((20_000 if n <= 100 else 2000, n))
    low, high = np.quantile((z.max(1) - z.mean(1)) / z.std(1, ddof=1), [0.025, 0.975])
    return float(low), float(high)


def iqm(values: Any) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter (rliable: 4 of 6 values)."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25))


def iqm_interval(by_seed: list[list[float]]) -> list[float] | None:
    """Percentile bootstrap over seeds (seeded) of the interquartile mean of all their runs. Covers too little at few seeds."""
    seeds, widest = len(by_seed), max(map(len, by_seed))
    if seeds < 2:
        return None
    padded = np.full((seeds, widest), np.nan)
    for row, values in zip(padded, by_seed, strict=True):
        row[: len(values)] = values
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    samples = np.sort(padded[drawn].reshape(RESAMPLES, -1), axis=1)  # NaN last
    n = np.isfinite(samples).sum(1)
    cut, rows = n // 4, np.arange(RESAMPLES)
    sums = np.pad(np.nan_to_num(samples).cumsum(1), ((0, 0), (1, 0)))
    means = (sums[rows, n - cut] - sums[rows, cut]) / (n - 2 * cut)
    return [float(end) for end in np.quantile(means, [0.025, 0.975])]


def seeds_for_risk(events: int, risk: float) -> int:
    """Runs, no further one negative, after which the risk is below `risk` (one-sided 95 %): 14/29/59 for 20/10/5 % from 0."""
    n = events + (ceil(log(0.05) / log(1 - risk)) if events == 0 else 1)
    while events and special.betaincinv(events + 1, n - events, LEVEL) >= risk:
        n += 1
    return n


def seeds_for_difference(sd: float, difference: float) -> int:
    """Pairs that show `difference` with 80 % power at two-sided 5 %: ((1.960 + 0.842) sd / difference)^2, sd that of a pair's."""
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return max(2, ceil((z * sd / difference) ** 2))


def shrunk(variances: list[float], freedom: list[int]) -> list[float]:
    """Variances drawn to their pooled one as if it had PRIOR_FREEDOM degrees: (d0 s0^2 + d s^2) / (d0 + d) (Smyth 2004)."""
    if not sum(freedom):
        return variances
    pooled = sum(d * v for d, v in zip(freedom, variances, strict=True)) / sum(freedom)
    return [(PRIOR_FREEDOM * pooled + d * v) / (PRIOR_FREEDOM + d) for d, v in zip(freedom, variances, strict=True)]


def sd_of_mean(interval: list[float] | None, n: int) -> float | None:
    """The sd of the n values whose t interval this is."""
    return None if interval is None else float((interval[1] - interval[0]) / 2 * sqrt(n) / t_quantile(0.975, n - 1))
