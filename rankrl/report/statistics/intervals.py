"""Estimates and 95 % intervals from samples of runs. Formulas and sources: docs/rules.md 6."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, comb, inf, isfinite, log, pi, sqrt
from typing import Any

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95
RESAMPLES = 1000
PRIOR_FREEDOM = 4
EQUAL = 1e-9
"""Values that differ by less count as equal, and then there is no interval: scores lie on a grid,
so a few seeds may share one value by chance."""


def t_quantile(p: float, freedom: float) -> float:
    """Quantile p of Student's t; takes a twentieth of the time of scipy.stats.t.ppf."""
    return float(special.stdtrit(freedom, p))


UNIT_LEGENDRE = lru_cache(np.polynomial.legendre.leggauss)
"""Number -> nodes and weights on [-1, 1]; takes longer than the integral."""


@lru_cache(maxsize=4096)
def tukey_quantile(p: float, groups: int, freedom: float) -> float:
    """Quantile p of the studentized range of `groups` means; inf degrees of freedom are allowed.

    The double integral of scipy.stats.studentized_range, by Gauss-Legendre: within 1e-8 of it, in
    a fifth of its time at few degrees of freedom, a thirteenth at many.
    """
    node_Z, weight_Z = _legendre(-8.0, 8.0, 200)
    below_Z, weight_Z = special.ndtr(node_Z), weight_Z * groups * np.exp(-(node_Z**2) / 2) / sqrt(2 * pi)
    scale_U, weight_U = np.ones(1), np.ones(1)
    if isfinite(freedom):  # the root of chi squared over its degrees of freedom, between tails of 1e-13
        low, high = np.sqrt(special.chdtri(freedom, [1 - 1e-13, 1e-13]) / freedom)
        scale_U, weight_U = _legendre(low, high, 120 if freedom > 4 else 400)
        weight_U = weight_U * stats.chi.pdf(scale_U * sqrt(freedom), freedom) * sqrt(freedom)

    def missed(q: float) -> float:
        within_UZ = below_Z - special.ndtr(node_Z - q * scale_U[:, None])
        return float(weight_U @ within_UZ ** (groups - 1) @ weight_Z) - p

    return float(optimize.brentq(missed, 0.0, 1e4, xtol=1e-8))


def _legendre(low: float, high: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral from low to high."""
    node, weight = UNIT_LEGENDRE(nodes)
    return (low + high) / 2 + (high - low) / 2 * node, (high - low) / 2 * weight


def t_interval(values: Any, level: float = LEVEL, weights: np.ndarray | None = None) -> list[float] | None:
    """Student t interval of the mean; None with fewer than two values, or where all are equal.

    `weights`, which sum to 1, make it that of a weighted mean of values of one variance.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or np.ptp(x) <= EQUAL:
        return None
    n = len(x)
    if weights is None:
        mean, error = float(x.mean()), float(x.std(ddof=1)) / sqrt(n)
    else:
        mean, error = float(weights @ x), float(x.std(ddof=1)) * sqrt(float(weights @ weights))
    half = t_quantile((1 + level) / 2, n - 1) * error
    return [mean - half, mean + half]


def clopper_pearson(events: float, n: int) -> list[float]:
    """Exact 95 % interval of a proportion (Clopper and Pearson 1934).

    `events` may be a sum of shares, as in Korn and Graubard 1998.
    """
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(events, n - events + 1, tail) if events > 0 else 0.0
    high = special.betaincinv(events + 1, n - events, 1 - tail) if events < n else 1.0
    return [float(low), float(high)]


def expected_max(values: Any, k: int) -> float:
    """Unbiased estimate of the expected best of k runs: sum over i of C(i-1, k-1)/C(n, k) x_(i).

    x_(i): the i-th smallest of the n values (Tang et al. 2020, 2004.13705).
    """
    x = np.sort(np.asarray(values, dtype=float))
    n = len(x)
    if n > 1000:  # the same weights by logarithms: C(n, k) overflows a float
        i = np.arange(k, n + 1)
        weights = np.exp(special.gammaln(i) - special.gammaln(i - k + 1) - special.gammaln(k))
        return float(weights / weights.sum() @ x[k - 1 :])
    return float(sum(comb(i, k - 1) / comb(n, k) * x[i] for i in range(k - 1, n)))


@lru_cache(maxsize=256)
def upside_null(n: int) -> tuple[float, float] | None:
    """95 % range of (best - mean) / sd for n normal values, by seeded simulation; None if n < 3.

    At n = 6: 0.81 to 1.89. A gap between best and mean in this range is no sign of latent upside.
    """
    if n < 3:
        return None
    z = np.random.default_rng(n).standard_normal((20_000 if n <= 100 else 2000, n))
    low, high = np.quantile((z.max(1) - z.mean(1)) / z.std(1, ddof=1), [0.025, 0.975])
    return float(low), float(high)


def iqm(values: Any) -> float:
    """Interquartile mean: that of the middle half of the values (as in rliable: 4 of 6 values)."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25))


def iqm_interval(by_seed: list[list[float]]) -> list[float] | None:
    """95 % interval of the interquartile mean of all runs: percentile bootstrap over seeds.

    `by_seed`: the gains of each seed. The resampling is seeded. None with fewer than two seeds;
    with few seeds the interval covers the true value in less than 95 % of cases.
    """
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


def seeds_for_risk(events: float, risk: float, family: int = 1) -> int:
    """Total number of runs at which the one-sided upper bound of the risk is below `risk`.

    The bound is that of `risk_bound`, at 95 % for a whole family. `events`: the negative runs so
    far; no further run may be negative. With none, 14, 29 and 59 runs for a risk of 20, 10 and 5 %.
    """
    n = ceil(events) + (ceil(log(0.05 / family) / log(1 - risk)) if events == 0 else 1)
    while risk_bound(events, n, family) >= risk:
        n += 1
    return n


def risk_bound(events: float, n: int, family: int = 1) -> float:
    """One-sided 95 % upper bound of a share, for a whole family (Clopper and Pearson 1934)."""
    tail = (1 - LEVEL) / family
    return float(special.betaincinv(events + 1, n - events, 1 - tail)) if events < n else 1.0


def seeds_for_difference(
    sd: float, difference: float, quantile: Callable[[float], float], per_seed: float = 1.0, known: float = inf
) -> int:
    """Seeds that show `difference` with 80 % power, by an interval of `quantile` standard errors.

    Smallest n of at least 2 at which t with v = (n - 1) per_seed degrees of freedom is below
    difference sqrt(n) / sd - quantile(v) in 80 % of cases. `sd`: of the difference on one seed. If
    it is an estimate with `known` degrees of freedom, this is the mean over what it may truly be:
    a promise at the estimate itself is broken too often.
    """
    true_U = sd * np.sqrt(known / special.chdtri(known, (np.arange(64) + 0.5) / 64)) if isfinite(known) else sd

    def short(n: int) -> bool:
        freedom = max(1.0, float(int((n - 1) * per_seed)))
        return bool(np.mean(special.stdtr(freedom, difference * sqrt(n) / true_U - quantile(freedom))) < 0.8 - 1e-12)

    low, high = 1, 2
    while short(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def bounded(low: float, high: float) -> list[float]:
    """The ends of an interval of gains or of a difference of gains, which lie between -1 and 1."""
    return [max(low, -1.0), min(high, 1.0)]


def bonferroni(family: int) -> Callable[[float], float]:
    """Degrees of freedom -> half-width, in standard errors, of intervals that hold for a family."""
    return lambda freedom: t_quantile(1 - (1 - LEVEL) / 2 / family, freedom)


def shrunk(variances: list[float], freedom: list[int]) -> list[float]:
    """Variances shrunk to their pooled value: (d0 s0^2 + d s^2) / (d0 + d) (Smyth 2004).

    d0 = PRIOR_FREEDOM and s0^2 the pooled variance; `freedom`: degrees of freedom d of each.
    """
    if not sum(freedom):
        return variances
    pooled = sum(d * v for d, v in zip(freedom, variances, strict=True)) / sum(freedom)
    return [(PRIOR_FREEDOM * pooled + d * v) / (PRIOR_FREEDOM + d) for d, v in zip(freedom, variances, strict=True)]
