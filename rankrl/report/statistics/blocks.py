"""Gains as a table of subjects by seeds, and the errors of means and differences.

A subject is an arm at a rank, or another group of cells. Runs of one seed share prompts, sampling
and rows of A, so subjects are compared by differences between runs of one seed and cell, and a seed
counts as one. All batch sizes of a subject count alike, whatever the number of their runs.
Axes: G subjects, B batch sizes (or other cells that subjects have in common), S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from rankrl.report.statistics.cells import CELL, Result, by_key
from rankrl.report.statistics.intervals import EQUAL
from rankrl.report.statistics.spread import Spread, spread

MANY = 9
"""Seeds of which two thirds always are enough."""
ENOUGH = 2 / 3
"""Share of the seeds of the largest cell below which a cell takes no part in comparisons."""
Subject = tuple[Any, ...]
"""(arm, rank), or the values of other keys."""


@dataclass(frozen=True)
class Blocks:
    """The gains of the runs of a sweep that ended with a score."""

    subjects: list[Subject]
    gain_GBS: np.ndarray
    """NaN where there is no run."""
    complete_G: np.ndarray
    """Whether all runs of a subject ended with a score. If some diverged without one, its mean is
    that of the survivors, and nothing may be claimed in its favour."""
    short: int = 0
    """Cells that are left out, since others have far more seeds."""
    references: dict[str, dict[str, str]] | None = None
    """Arm -> arms that it is compared with (statistics/references.py); None: with all."""

    @cached_property
    def spread(self) -> Spread:
        return spread(self.gain_GBS)

    @cached_property
    def mean_G(self) -> np.ndarray:
        """Mean over batch sizes of the mean over seeds."""
        return _mean(_mean(self.gain_GBS, 2), 1)

    @cached_property
    def level_GS(self) -> np.ndarray:
        """Gain of a subject on a seed: `mean_G` plus the mean distance of the seed's runs to the
        means of their cells. A batch size that a seed lacks does not move it."""
        return _mean(self.gain_GBS - _mean(self.gain_GBS, 2)[:, :, None], 1) + self.mean_G[:, None]

    @cached_property
    def seeds_G(self) -> np.ndarray:
        """Seeds of each subject."""
        return np.isfinite(self.level_GS).sum(1)

    @cached_property
    def difference_GG(self) -> np.ndarray:
        """Mean difference of two subjects over the seeds and batch sizes that both have, or NaN."""
        return np.array([_mean(_mean(ours - self.gain_GBS, 2), 1) for ours in self.gain_GBS])

    @cached_property
    def pairs_GGB(self) -> np.ndarray:
        """Seeds that two subjects share at each batch size."""
        has = np.isfinite(self.gain_GBS).astype(float)
        return np.einsum("gbs,hbs->ghb", has, has)

    @cached_property
    def common_GG(self) -> np.ndarray:
        """Seeds on which two subjects share a batch size."""
        has = np.isfinite(self.gain_GBS)
        return np.array([(ours & has).any(1).sum(1) for ours in has])

    @cached_property
    def error_GG(self) -> np.ndarray:
        """Standard error of `difference_GG`; NaN where it is not known."""
        variance_G = self.spread.variance_G
        return np.sqrt((variance_G[:, None] + variance_G) * self._share(self.pairs_GGB))

    @cached_property
    def freedom_GG(self) -> np.ndarray:
        """Degrees of freedom of `error_GG` (Satterthwaite 1946), rounded down, at least 1."""
        v, known, several = self.spread.variance_G, self.spread.freedom_G, (self.pairs_GGB > 0).sum(2) > 1
        with np.errstate(divide="ignore", invalid="ignore"):
            shared = several / self.spread.correlation_freedom
            relative = (v[:, None] ** 2 / known[:, None] + v**2 / known) / (v[:, None] + v) ** 2
            pooled = np.maximum(np.divide(1, self.spread.freedom), shared)  # of one estimate of the seeds' means
            freedom = 1 / (pooled if self.spread.alike else relative + shared)
        return np.floor(np.clip(np.nan_to_num(freedom), 1, max(1.0, self.spread.freedom)))

    @cached_property
    def compared(self) -> list[tuple[int, int]]:
        """Pairs of subjects (arm, rank) of one arm or of one rank that have an `error_GG`.

        Of one rank, only those of an arm and its references.
        """
        able = np.isfinite(self.error_GG) & np.isfinite(self.difference_GG)
        pairs = combinations(enumerate(self.subjects), 2)
        alike = [(i, j) for (i, a), (j, b) in pairs if able[i, j] and (a[0] == b[0] or a[1] == b[1])]
        return [(i, j) for i, j in alike if self._may_compare(self.subjects[i][0], self.subjects[j][0])]

    def _may_compare(self, arm: str, other: str) -> bool:
        """Whether two arms are the same one, or one is a reference of the other."""
        if arm == other or self.references is None:
            return True
        return any(a in self.references.get(b, {}).values() for a, b in ((arm, other), (other, arm)))

    def _share(self, n_B: np.ndarray) -> np.ndarray:
        """Variance of a mean over batch sizes of means of `n_B` runs, in units of a run's."""
        batches = (n_B > 0).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            single = np.where(n_B > 0, 1 / n_B, 0.0).sum(-1) / np.where(batches, batches, np.nan) ** 2
        return single * (1 + (batches - 1) * self.spread.correlation)

    @cached_property
    def _own_G(self) -> np.ndarray:
        """Variance of a subject's level over its seeds, the seeds' effects included."""
        left = np.where(self.seeds_G > 1, self.seeds_G - 1, np.nan)
        return np.nansum((self.level_GS - _mean(self.level_GS, 1)[:, None]) ** 2, axis=1) / left

    @cached_property
    def mean_error_G(self) -> tuple[np.ndarray, np.ndarray]:
        """Standard error of `mean_G` and its degrees of freedom; NaN where it is not known.

        It is that of the noise, plus that of the seeds' effect, which all subjects share. A subject
        alone has only its own seeds.
        """
        own_G, n_G = self._own_G, self.seeds_G
        noise_G = self.spread.variance_G * self._share(np.isfinite(self.gain_GBS).sum(2))
        able = np.isfinite(noise_G) & np.isfinite(own_G)
        alone_G = np.where(own_G > EQUAL**2, own_G, np.nan) / np.where(n_G, n_G, np.nan)
        if not able.any():
            return np.sqrt(alone_G), np.maximum(n_G - 1.0, 1)
        level = (noise_G * n_G)[able].mean()
        shared = max(0.0, float((own_G - noise_G * n_G)[able].mean()))
        with np.errstate(divide="ignore", invalid="ignore"):
            seed_G = shared / n_G
            uncertain_G = (shared + level / able.sum()) / n_G
            several = np.isfinite(self.gain_GBS).any(2).sum(1) > 1
            known_G = 1 / (1 / self.spread.freedom_G + several / self.spread.correlation_freedom)
            freedom_G = (seed_G + noise_G) ** 2 / (uncertain_G**2 / (n_G - 1) + noise_G**2 / known_G)
        variance_G = np.where(able, seed_G + noise_G, alone_G)
        return np.sqrt(variance_G), np.where(able, np.maximum(np.nan_to_num(freedom_G), 1), np.maximum(n_G - 1.0, 1))


def blocks(results: list[Result], keys: tuple[str, ...] = ("arm", "rank")) -> Blocks:
    """The table of a sweep's results by the values of `keys`; runs without a gain are left out."""
    ended = [run for run in results if run["gain"] is not None]
    rest = tuple(key for key in CELL if key not in keys)
    groups = by_key(ended, keys)
    cells = {cell: i for i, cell in enumerate(by_key(ended, rest))}
    seeds = {seed: i for i, (seed,) in enumerate(by_key(ended, ("seed",)))}
    table = np.full((len(groups), max(1, len(cells)), len(seeds)), np.nan)
    for g, runs in enumerate(groups.values()):
        for run in runs:
            table[g, cells[tuple(run[key] for key in rest)], seeds[run["seed"]]] = run["gain"]
    lost = {tuple(run[key] for key in keys) for run in results if run["gain"] is None or run["status"] == "diverged"}
    short_GB = _short(table)
    table[short_GB] = np.nan
    complete_G = np.array([subject not in lost for subject in groups], dtype=bool)
    return Blocks(list(groups), table, complete_G, int(short_GB.sum()))


def _short(gain_GBS: np.ndarray) -> np.ndarray:
    """Cells with less than ENOUGH of the seeds of the largest cell, or of MANY, `[G, B]`.

    Their noise is not known, and may be larger than that of the cells that would stand for it.
    """
    n_GB = np.isfinite(gain_GBS).sum(2)
    return (n_GB > 0) & (n_GB < ENOUGH * min(n_GB.max(initial=0), MANY))


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    n = np.isfinite(values).sum(axis)
    return np.nansum(values, axis=axis) / np.where(n, n, np.nan)
