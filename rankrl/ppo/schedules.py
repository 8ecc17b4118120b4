"""Schedules over PPO steps.

They are stateless functions of the step, so a resumed run continues where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from rankrl.recipe.kl_section import KLSchedule


def kl_share(schedule: KLSchedule, step: int, steps: int) -> float:
    """Share of the KL level at PPO step `step` of `steps`.

    Both ends are included: 0 is the first step, steps - 1 the last.
    """
    done = step / max(steps - 1, 1)
    if schedule.shape == "linear":
        return 1 + (schedule.final - 1) * done
    if schedule.shape == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + cos(pi * done)) / 2
    if schedule.shape == "early_anchor":
        return 1 + (schedule.anchor - 1) * max(0.0, 1 - done / schedule.anchor_share)
    return 1.0


def lr_share(shape: str, step: int, steps: int, warmup: int, offset: int, final: float = 0.1) -> float:
    """Share of the learning rate at optimizer step `step` (from 0) of `steps`.

    It rises over the first `warmup` steps, by (step + offset) / warmup, and then stays, or falls to
    0 (linear) or to `final` (cosine), which the step after the last one would have.
    """
    if step < warmup:
        return (step + offset) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if shape == "linear":
        return 1 - done
    return final + (1 - final) * (1 + cos(pi * done)) / 2 if shape == "cosine" else 1.0


def adapt(coefficient: float, kl: float, target: float, horizon_steps: float) -> float:
    """The next adaptive coefficient, once per PPO step.

    It is beta (1 + clip(KL / target - 1, -0.2, 0.2) / horizon). Ziegler et al. (1909.08593) scale
    by samples over a horizon in samples, so their controller would depend on the batch size.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error / horizon_steps)


@dataclass
class KLController:
    """The KL coefficient of the current step. Upstream's experience maker reads `value`."""

    level: float
    schedule: KLSchedule
    steps: int
    step: int = 0
    adapted: float = 1.0
    """Factor that an adaptive schedule has reached; 1 for all other shapes."""

    @property
    def value(self) -> float:
        return self.level * kl_share(self.schedule, self.step, self.steps) * self.adapted

    def update(self, kl: float) -> None:
        """Moves an adaptive coefficient after a step.

        `kl` is the step's KL to the base, in nats per token.
        """
        if self.schedule.shape == "adaptive":
            assert self.schedule.target is not None
            self.adapted = adapt(self.adapted, max(kl, 0.0), self.schedule.target, self.schedule.horizon(self.steps))


def clip_share(final: float, step: int, steps: int) -> float:
    """Share of the clip range at PPO step `step` of `steps`: linear from 1 to `final`."""
    return 1 + (final - 1) * step / max(steps - 1, 1)
