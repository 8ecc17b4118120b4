"""How much a run's gain varies around its subject's mean and its seed's effect.

Model: gain = mean of the subject at its batch size + effect of the seed at that batch size + noise.
The noise has a variance of the subject's own, and a correlation, common to all subjects, between
runs of one subject and seed. Subjects differ in noise (rank 1 has several times that of rank 32),
and a few seeds tell little of it, so variances are drawn towards a typical one as far as they look
alike (Smyth 2004, doi 10.2202/1544-6115.1027), but never below the subject's own: its own may be
small by chance, and a noisy subject must not be judged by quiet ones.
Axes: G subjects, B batch sizes, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from rankrl.report.statistics.intervals import EQUAL

PASSES = 50
FLOOR = 0.01
"""Share of the median variance that stands for a smaller one: few gains may be equal by chance."""


@dataclass(frozen=True)
class Spread:
    """The noise of a run, by subject, with the degrees of freedom of each estimate."""

    variance_G: np.ndarray
    """NaN for a subject that shares no seed with another one, or where nothing varies."""
    freedom_G: np.ndarray
    alike: bool
    """Whether the variances look alike. Then all are pooled, with the degrees of freedom of all."""
    freedom: float
    """Degrees of freedom of all subjects together."""
    correlation: float
    """Correlation of the noise of two runs of one subject and seed, at least 0."""
    correlation_freedom: float


def spread(gain_GBS: np.ndarray) -> Spread:
    """The noise in a table of gains (NaN where there is no run)."""
    weight_G = np.ones(len(gain_GBS))
    for _ in range(2):  # quiet subjects tell a seed's effect; noisy ones would hide how quiet they are
        drawn_G = moderated(*own_variances(_residuals(gain_GBS, weight_G), weight_G))[0]
        weight_G = np.where(np.isfinite(drawn_G), 1 / drawn_G, 0.0) if np.isfinite(drawn_G).any() else weight_G
    residual_GBS = _residuals(gain_GBS, weight_G)
    own_G, freedom_G = own_variances(residual_GBS, weight_G)
    correlation, correlation_freedom = _correlation(residual_GBS, own_G, freedom_G)
    several = np.isfinite(residual_GBS).sum(1)
    batches = several.sum() / max(1, (several > 0).sum())
    freedom_G = freedom_G / (1 + (batches - 1) * correlation**2)  # runs of one seed tell the same twice
    drawn_G, drawn_freedom_G, alike = moderated(own_G, freedom_G)
    noisy_G = ~(own_G <= drawn_G) & ~np.isnan(drawn_G)
    known_G = np.where(noisy_G & (not alike), freedom_G, drawn_freedom_G)
    raised_G = np.where(noisy_G, own_G, drawn_G)
    return Spread(raised_G, known_G, alike, float(freedom_G.sum()), correlation, correlation_freedom)


def _residuals(gain_GBS: np.ndarray, weight_G: np.ndarray) -> np.ndarray:
    """Gains without subjects' and seeds' means at each batch size.

    NaN where a seed has one subject. The mean of a seed is weighted by `weight_G`.
    """
    has = np.isfinite(gain_GBS)
    alone_BS = has.sum(0) < 2
    residual = np.where(alone_BS, np.nan, gain_GBS)
    full = (has | alone_BS).all() or alone_BS.all()
    weight_GBS = np.where(np.isfinite(residual), weight_G[:, None, None], 0.0)
    total_BS = weight_GBS.sum(0)
    for _ in range(1 if full else PASSES):  # one pass is exact in a full table
        n_GB = np.isfinite(residual).sum(2)
        residual = residual - (np.nansum(residual, 2) / np.where(n_GB, n_GB, np.nan))[:, :, None]
        seed_BS = np.nansum(weight_GBS * np.nan_to_num(residual), 0) / np.where(total_BS > 0, total_BS, np.nan)
        residual = residual - np.nan_to_num(seed_BS)
    return residual


def own_variances(residual_GBS: np.ndarray, weight_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of each subject and its degrees of freedom (0 where it has none).

    A run at a batch size with n seeds, of a subject with the share w of its seed's weights, keeps
    (1 - 1/n) (1 - w) of its noise.
    """
    freedom_G = _kept(residual_GBS, weight_G).sum((1, 2))
    squares_G = np.nansum(residual_GBS**2, axis=(1, 2))
    return np.where(freedom_G > EQUAL, squares_G / np.where(freedom_G > EQUAL, freedom_G, 1.0), np.nan), freedom_G


def _kept(residual_GBS: np.ndarray, weight_G: np.ndarray) -> np.ndarray:
    has = np.isfinite(residual_GBS)
    n_GB1 = has.sum(2, keepdims=True)
    weight_GBS = np.where(has, weight_G[:, None, None], 0.0)
    total_BS = weight_GBS.sum(0)
    share = weight_GBS / np.where(total_BS > 0, total_BS, 1.0)
    return np.where(has, (1 - 1 / np.maximum(n_GB1, 1)) * (1 - share), 0.0)


def _correlation(residual_GBS: np.ndarray, variance_G: np.ndarray, freedom_G: np.ndarray) -> tuple[float, float]:
    """Correlation of the noise of runs of one subject and seed, and its degrees of freedom."""
    has = np.isfinite(residual_GBS)
    n_GS = has.sum(1)
    runs_G = has.sum((1, 2))
    able = (freedom_G > EQUAL) & (np.nan_to_num(variance_G) > EQUAL**2)
    kept_G = np.where(runs_G, freedom_G / np.maximum(runs_G, 1), 0.0)
    pairs = float(((n_GS * (n_GS - 1)).sum(1) * kept_G)[able].sum())
    freedom = float(((n_GS > 0).sum(1) * kept_G)[able].sum())
    if not pairs:
        return 0.0, np.inf
    both_GS = np.nansum(residual_GBS, 1) ** 2 - np.nansum(residual_GBS**2, 1)
    found = float((both_GS.sum(1)[able] / variance_G[able]).sum()) / pairs
    return min(max(found, 0.0), 1.0), freedom


def moderated(variance_G: np.ndarray, freedom_G: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Variances drawn towards a typical one, with degrees of freedom.

    Returns (variances, their degrees of freedom, whether all look alike). The typical variance and
    its degrees of freedom d0 are fitted to the logarithms of the variances; if these spread no more
    than chance makes them, d0 is infinite and all are pooled.
    """
    able = (freedom_G > EQUAL) & np.isfinite(variance_G)
    total = freedom_G[able].sum()
    pooled = float((variance_G[able] * freedom_G[able]).sum() / total) if total else 0.0
    drawn_G, known_G = np.full(len(variance_G), np.nan), np.zeros(len(variance_G))
    if pooled <= EQUAL**2:
        return drawn_G, known_G, True
    own, freedom = variance_G[able], freedom_G[able]
    prior, typical = _prior(np.maximum(own, FLOOR * np.median(own[own > 0])), freedom)
    alike = bool(np.isinf(prior))
    drawn_G[able] = pooled if alike else (prior * typical + freedom * own) / (prior + freedom)
    known_G[able] = total if alike else np.minimum(prior + freedom, total)
    return drawn_G, known_G, alike


def _prior(variance: np.ndarray, freedom: np.ndarray) -> tuple[float, float]:
    """(d0, s0^2) of a scaled inverse chi-squared law of the variances; d0 may be infinite."""
    if len(variance) < 2:
        return np.inf, float(variance.mean())
    half = freedom / 2
    log = np.log(variance) - special.digamma(half) + np.log(half)
    beyond = float(log.var(ddof=1) - special.polygamma(1, half).mean())
    if beyond <= 1e-6:
        return np.inf, float(np.exp(log.mean()))
    prior = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - beyond, 1e-6, 1e7)
    return prior, float(np.exp(log.mean() + special.digamma(prior / 2) - np.log(prior / 2)))
