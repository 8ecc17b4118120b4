"""Brakes of a policy's update: optimizer steps that are not taken, and how many they were.

They act where the optimizer would step, so that all workers decide alike. The learning-rate
schedule goes on over a step that is not taken: it is a function of how far the run is.
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from statistics import median
from typing import Any

import torch

from rankrl.adapter.watch import Reduce
from rankrl.recipe.schema import FEW_NORMS
from rankrl.recipe.schema import Brakes as BrakesSection

NORMS = 64
"""Gradient norms whose median a new one is compared with."""


class Brakes:
    """The brakes of one run on one worker.

    Norms of skipped steps count in the median, so a level that stays is no spike for long.
    """

    def __init__(self, section: BrakesSection | None = None, added_up: Reduce = lambda tensor: tensor):
        self.section, self.added_up = section or BrakesSection(), added_up
        self.norms: deque[float] = deque(maxlen=NORMS)
        self.new_rollout()

    def new_rollout(self) -> None:
        """Releases the brakes and starts the counts anew."""
        self.stopped, self.stopped_steps, self.skipped_steps = False, 0, 0
        self.kl_and_tokens: list[torch.Tensor] = []  # of each micro-batch since the last step

    def watch(self, loss: torch.nn.Module) -> None:
        """Reads the KL from the log-probabilities that upstream's policy loss is given."""
        if self.section.max_kl is not None:
            loss.register_forward_hook(self._add_kl, with_kwargs=True)

    def _add_kl(self, loss: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any], output: Any) -> None:
        new_BA, old_BA, mask_BA = args[0].detach(), args[1], kwargs["action_mask"].bool()
        log_ratio = (new_BA - old_BA)[mask_BA].double()
        kl = (log_ratio.exp() - 1 - log_ratio).sum()  # k3, of tokens drawn from the old policy
        self.kl_and_tokens.append(torch.stack([kl, mask_BA.sum().double()]))

    def allow(self, norm: float) -> bool:
        """Whether the optimizer may take the step whose gradient norm is `norm`."""
        if self._too_far():
            self.stopped, self.stopped_steps = True, 1
            return False
        spike = self._spike(norm)
        self.skipped_steps += spike
        return not spike

    def overflow(self) -> None:
        """Counts a step that is not taken because its gradient is beyond float16."""
        self.kl_and_tokens.clear()
        self.skipped_steps += 1

    def pass_over(self) -> None:
        """Counts a step after the one at which the KL was too large."""
        self.stopped_steps += 1

    def _too_far(self) -> bool:
        if self.section.max_kl is None:
            return False
        kl, tokens = self.added_up(torch.stack(self.kl_and_tokens).sum(0)).tolist()
        self.kl_and_tokens.clear()
        return kl > self.section.max_kl * tokens

    def _spike(self, norm: float) -> bool:
        if self.section.max_norm_ratio is None:
            return False
        known = list(self.norms)
        if isfinite(norm):
            self.norms.append(norm)
        usual = median(known) if len(known) >= FEW_NORMS else 0.0  # 0 where rollouts have nothing to learn from
        return usual > 0 and not norm <= self.section.max_norm_ratio * usual

    def counts(self) -> dict[str, int]:
        """Optimizer steps of this rollout that were not taken, by reason."""
        return {"kl_stopped": self.stopped_steps, "norm_skipped": self.skipped_steps}
