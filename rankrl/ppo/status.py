"""What a PPO step reports: the statuses of its workers, whether they are finite, and its times."""

from __future__ import annotations

import math
import time
from typing import Any

MUST_BE_FINITE = ("policy_loss", "critic_loss", "actor_grad_norm", "critic_grad_norm", "actor_weight_max",
                  "critic_weight_max")  # fmt: skip


class Diverged(RuntimeError):
    """A loss, a gradient norm, a weight or a log-probability is no longer finite."""

    def __init__(self, message: str, finite_steps: int):
        super().__init__(message)
        self.finite_steps = finite_steps
        """PPO steps after which everything was still finite."""


class Stopwatch:
    """A stopwatch: `lap` is the seconds since the last lap, `total` those since the start."""

    def __init__(self) -> None:
        self.began_s = self.last_s = time.perf_counter()

    def lap(self) -> float:
        now_s = time.perf_counter()
        lap_s, self.last_s = now_s - self.last_s, now_s
        return lap_s

    def total(self) -> float:
        return time.perf_counter() - self.began_s


def merged(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """The statuses of all workers in one, which has all their keys."""
    return {key: value for status in statuses for key, value in status.items()}


def mean_status(statuses: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the critics' statuses by key; {} without any. NaN and infinity show in it."""
    return {key: sum(status[key] for status in statuses) / len(statuses) for key in merged(statuses)}


def check_finite(step: int, status: dict[str, Any]) -> None:
    """Raises Diverged if a loss, norm or weight of PPO step `step` (from 0) is not finite."""
    for name in MUST_BE_FINITE:
        if not math.isfinite(status.get(name, 0.0)):
            raise Diverged(f"step {step + 1}: {name} is {status[name]}", step)
