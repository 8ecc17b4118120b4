"""What the first optimizer step of each rank does to the base, as measured before a run. No torch.

The rate of `rules.lr.rule=measured` follows from it, and `rankrl measure` prints it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import exp, isfinite, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rankrl.recipe.rules import measured
from rankrl.recipe.whole_file import whole_file

DRAWS = 4
"""Draws of A: those of the seeds 0 to 3."""
T_975 = 3.182446
"""Quantile .975 of Student's t with DRAWS - 1 degrees of freedom."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class FirstStep:
    """The first step of one rank; each list has a value per draw of A."""

    kl: list[float]
    """KL to the base at the reference rate, in nats per response token."""
    kl_at_rule: list[float]
    """The same at the rate that the rule gives this rank."""
    grad_norm: list[float]
    captured_energy: list[float]
    """Share of the squared norm of G, the gradient of the weights, in the span of A's rows."""
    signal_to_noise: list[float]
    """Squared signal-to-noise ratio of the adapter's gradient, from two halves of the prompts."""


@dataclass(frozen=True)
class FirstSteps:
    """The first steps of several ranks, all from one policy gradient."""

    lr: float
    """The reference rate, at which `kl` was measured."""
    at_rank: int
    """The reference rank."""
    ranks: dict[int, FirstStep]
    facts: dict[str, Any]
    """Numbers of prompts, samples and tokens of the measurement."""

    @property
    def kl(self) -> dict[int, float]:
        """Rank -> KL at the reference rate: the geometric mean over the draws."""
        return {rank: geometric_mean(step.kl) for rank, step in self.ranks.items()}

    def rate(self, rank: int) -> float:
        """The rate at which the first step of `rank` has the KL of the reference rank."""
        return measured(rank, self.lr, self.at_rank, self.kl)

    def ratio_ci95(self, rank: int) -> Interval | None:
        """Interval of KL(rank) / KL(reference rank). Both are of one draw of A each time."""
        pairs = zip(self.ranks[rank].kl, self.ranks[self.at_rank].kl, strict=True)
        return log_interval([ours / theirs for ours, theirs in pairs])

    def rate_ci95(self, rank: int) -> Interval | None:
        """Interval of `rate`, which falls as the ratio of the KLs grows."""
        found = self.ratio_ci95(rank)
        return found and (self.lr / sqrt(found[1]), self.lr / sqrt(found[0]))

    def told(self, rank: int) -> str:
        """What was measured of a rank, in words."""
        ratio, ci95 = self.kl[rank] / self.kl[self.at_rank], self.ratio_ci95(rank)
        interval = f" [{ci95[0]:.3g}, {ci95[1]:.3g}]" if ci95 else ""
        return f"KL of the first step on the base: {ratio:.3g}{interval} times that of rank {self.at_rank}"

    def rows(self) -> list[dict[str, Any]]:
        """What `rankrl measure` says of each rank."""
        return [self._row(rank, step) for rank, step in sorted(self.ranks.items())]

    def _row(self, rank: int, step: FirstStep) -> dict[str, Any]:
        return {
            "rank": rank,
            "kl_first_step": self.kl[rank],
            "kl_ci95": log_interval(step.kl),
            "kl_ratio": self.kl[rank] / self.kl[self.at_rank],
            "kl_ratio_ci95": self.ratio_ci95(rank),
            "grad_norm": fmean(step.grad_norm),
            "captured_energy": fmean(step.captured_energy),
            "signal_to_noise": fmean(step.signal_to_noise),
            "lr": self.rate(rank),
            "lr_ci95": self.rate_ci95(rank),
            "kl_at_rule": geometric_mean(step.kl_at_rule),
        }


def geometric_mean(values: list[float]) -> float:
    """The exponential of the mean logarithm of values above 0."""
    return exp(fmean(map(log, values)))


def log_interval(values: list[float]) -> Interval | None:
    """95 % t interval of the mean logarithm over DRAWS draws, as an interval of the values.

    None with one draw: where A does not depend on the seed, nothing is known of its spread.
    """
    if len(values) != DRAWS:
        return None
    logs = [log(value) for value in values]
    half = T_975 * stdev(logs) / sqrt(DRAWS)
    return exp(fmean(logs) - half), exp(fmean(logs) + half)


def write_first_steps(path: Path, found: FirstSteps) -> None:
    """Writes the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(asdict(found), indent=1) + "\n")


def read_first_steps(path: Path) -> FirstSteps | None:
    """What `write_first_steps` wrote; None if the file is absent or damaged."""
    try:
        plain = json.loads(path.read_text())
        ranks = {int(rank): FirstStep(**step) for rank, step in plain.pop("ranks").items()}
        found = FirstSteps(**plain, ranks=ranks)
        return found if _plausible(found) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _plausible(found: FirstSteps) -> bool:
    """Whether all rates follow from it: finite KLs above 0, as many of each rank."""
    kls = [kl for step in found.ranks.values() for kl in (step.kl, step.kl_at_rule)]
    draws = len(found.ranks[found.at_rank].kl)
    return found.lr > 0 and draws > 0 and all(len(kl) == draws and all(map(_positive, kl)) for kl in kls)


def _positive(kl: float) -> bool:
    return isfinite(kl) and kl > 0
