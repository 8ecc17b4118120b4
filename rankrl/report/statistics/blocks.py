"""Gains as a table of subjects by seeds, and the variance of a subject's seeds around it.

A subject is an arm at a rank. Runs of one seed share prompts, sampling and rows of A, so subjects
are compared by differences between runs of one seed and batch size, averaged over batch sizes: the
seed is the independent unit. Axes: G subjects, B batch sizes, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankrl.report.statistics.cells import Result, by_key
from rankrl.report.statistics.intervals import EQUAL

Subject = tuple[str, int]
"""(arm, rank)."""


@dataclass(frozen=True)
class Blocks:
    """The gains of the runs of a sweep that ended with a score."""

    subjects: list[Subject]
    gain_GBS: np.ndarray
    """NaN where there is no run."""
    complete_G: np.ndarray
    """Whether all runs of a subject ended with a score. If some diverged without one, its mean is
    that of the survivors, and nothing may be claimed in its favour."""

    @cached_property
    def level_GS(self) -> np.ndarray:
        """Gain of a subject on a seed.

        It is the mean over batch sizes of the distance to the cell's mean, plus the mean of the
        cells: a batch size that a seed lacks does not move it.
        """
        cell_GB = _mean(self.gain_GBS, 2)
        return _mean(self.gain_GBS - cell_GB[:, :, None], 1) + _mean(cell_GB, 1)[:, None]

    @cached_property
    def seeds_G(self) -> np.ndarray:
        """Seeds of each subject."""
        return np.isfinite(self.level_GS).sum(1)

    @cached_property
    def freedom(self) -> int:
        """Degrees of freedom of the pooled variance, beside the subjects' and seeds' means."""
        return int(np.isfinite(self._residual_GS).sum()) - len(self._shared_G) - self._residual_GS.shape[1] + 1

    @cached_property
    def _shared_G(self) -> np.ndarray:
        """Subjects that share a seed with another one."""
        has = np.isfinite(self.level_GS)
        return np.flatnonzero((has & (has.sum(0) > 1)).any(1))

    @cached_property
    def _residual_GS(self) -> np.ndarray:
        """Levels without subjects' and seeds' means, for seeds of two subjects or more."""
        level_GS = self.level_GS[self._shared_G]
        residual = level_GS[:, np.isfinite(level_GS).sum(0) > 1]
        for _ in range(1 if np.isfinite(residual).all() else 50):  # one pass is exact in a full table
            residual = residual - _mean(residual, 1)[:, None]
            residual = residual - _mean(residual, 0)[None, :]
        return residual

    @cached_property
    def variance_G(self) -> np.ndarray:
        """Variance of a subject's level around its mean and the seed's effect.

        It is the pooled variance, or the subject's own where that is larger: its own may be small
        by chance, and a noisy subject must not be judged by quiet ones. NaN without a shared seed.
        """
        variance = np.full(len(self.subjects), np.nan)
        squares = np.nansum(self._residual_GS**2, axis=1)
        if self.freedom < 1 or not len(squares):
            return variance
        counted = np.isfinite(self._residual_GS).sum(1)
        pooled = squares.sum() / self.freedom
        own = squares / (counted * self.freedom / counted.sum())
        variance[self._shared_G] = np.maximum(own, pooled)
        return np.where(variance > EQUAL**2, variance, np.nan)

    @cached_property
    def difference_GG(self) -> np.ndarray:
        """Mean difference of two subjects over the seeds and batch sizes that both have, or NaN."""
        return np.array([_mean(_mean(ours - self.gain_GBS, 1), 1) for ours in self.gain_GBS])

    @cached_property
    def common_GG(self) -> np.ndarray:
        """Seeds on which two subjects share a batch size."""
        has = np.isfinite(self.gain_GBS)
        return np.array([(ours & has).any(1).sum(1) for ours in has])

    @cached_property
    def error_GG(self) -> np.ndarray:
        """Standard error of `difference_GG`; NaN where it is not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt((self.variance_G[:, None] + self.variance_G) / self.common_GG)


def blocks(results: list[Result]) -> Blocks:
    """The table of a sweep's results; runs without a gain are left out."""
    ended = [run for run in results if run["gain"] is not None]
    groups = by_key(ended, ("arm", "rank"))
    batches = {b: i for i, b in enumerate(sorted({run["batch_size"] for run in ended}))}
    seeds = {s: i for i, s in enumerate(sorted({run["seed"] for run in ended}))}
    table = np.full((len(groups), len(batches), len(seeds)), np.nan)
    for g, runs in enumerate(groups.values()):
        for run in runs:
            table[g, batches[run["batch_size"]], seeds[run["seed"]]] = run["gain"]
    lost = {(run["arm"], run["rank"]) for run in results if run["gain"] is None}
    return Blocks(list(groups), table, np.array([subject not in lost for subject in groups], dtype=bool))


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    n = np.isfinite(values).sum(axis)
    return np.nansum(values, axis=axis) / np.where(n, n, np.nan)
