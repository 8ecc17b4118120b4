"""The trust region of a run: a factor on the policy's scheduled rate that follows its KL."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from rankrl.ppo.schedules import lr_share
from rankrl.recipe.plan import Run
from rankrl.recipe.trust_section import TrustRegion as Section

MOST_CHANGE = 1.5
"""Most that one PPO step multiplies or divides the rate by."""


def change(kl: float, target: float) -> float:
    """What the rate is multiplied by after a step: sqrt(target / kl) within 1/1.5 and 1.5.

    KL goes as the square of the rate. A KL of 0 says nothing: without a step, or with B = 0.
    """
    return min(max(sqrt(target / kl), 1 / MOST_CHANGE), MOST_CHANGE) if kl > 0 else 1.0


@dataclass
class TrustRegion:
    """The factor of one run, in its controller."""

    section: Section
    updates: int
    """PPO steps in which the policy learns."""
    warmup_updates: int
    """How many of the first ones do not have the whole rate; the factor does not rise in them."""
    factor: float = 1.0

    @classmethod
    def of(cls, run: Run) -> TrustRegion:
        updates, each = run.recipe.steps - run.critic_warmup_steps, run.updates
        steps, offset = updates * each, run.recipe.warmup_offset
        warmup = ceil(steps * run["warmup"])
        shares = (lr_share("constant", update * each, steps, warmup, offset) for update in range(updates))
        return cls(run.recipe.trust_region, updates, sum(share < 1 for share in shares))

    def target(self, done: int) -> float:
        """The KL that the last of `done` updates of the policy should have; at 0, the first one."""
        return self.section.target_at(max(done - 1, 0) / self.updates)

    def follow(self, done: int, kl: float) -> None:
        """Moves the factor by the KL of the last of `done` updates."""
        if done < 1:  # what differs from 0 then is rounding
            return
        by = change(kl, self.target(done))
        by = min(by, 1.0) if done <= self.warmup_updates else by
        self.factor = min(max(self.factor * by, self.section.low), self.section.high)
