"""Instruments that show when learning is noise. They read a policy's update and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

Gather = Callable[[torch.Tensor], torch.Tensor]
"""A function from a vector [K] of this worker to those of all workers [W, K]."""
LOG_RATIO_MOST = 20.0
"""Log-ratios of tokens are cut off here, as in upstream's loss."""
PERCENTS = (10, 50, 90)
READINGS = ("grad_cosine", "ess_frac", "ratio_max", "norm_clipped_frac", "delta_norm", "entropy_p10", "entropy_p50",
            "entropy_p90")  # fmt: skip
"""What an update of the policy adds to its step's line. A step without one has none of them."""


def alone(values_K: torch.Tensor) -> torch.Tensor:
    """The vectors [1, K] of all workers, where there is only this one."""
    return values_K[None]


def ratio_sums(log_ratios_N: torch.Tensor) -> torch.Tensor:
    """[4]: the number of importance ratios, their sum, the sum of their squares, the largest."""
    ratios_N = log_ratios_N.double().clamp(-LOG_RATIO_MOST, LOG_RATIO_MOST).exp()
    n = torch.full_like(ratios_N.sum(), len(ratios_N))
    return torch.stack([n, ratios_N.sum(), ratios_N.square().sum(), pad(ratios_N, (0, 1)).amax()])


def of_ratios(sums_X4: torch.Tensor) -> dict[str, float]:
    """`ess_frac`, the effective sample size as a share of the tokens, and the largest ratio.

    `sums_X4` has a row of `ratio_sums` for each part of the tokens.
    """
    n, total, squares = sums_X4[:, :3].sum(0).tolist()
    if not n:
        return {}
    return {"ess_frac": total**2 / (n * squares), "ratio_max": float(sums_X4[:, 3].amax())}


def cosine(a_P: torch.Tensor, b_P: torch.Tensor) -> float | None:
    """The cosine of two gradients; None if one of them is 0 or not finite."""
    a_P, b_P = a_P.double(), b_P.double()
    norms = float(a_P.norm()) * float(b_P.norm())
    return float(a_P.dot(b_P)) / norms if norms and isfinite(norms) else None


def quantiles(entropies_N: torch.Tensor) -> dict[str, float]:
    """Entropy (nats) below which 10, 50 and 90 % of the tokens are; {} without tokens."""
    if not len(entropies_N):
        return {}
    found = np.percentile(entropies_N.cpu().numpy(), PERCENTS).tolist()
    return {f"entropy_p{percent}": value for percent, value in zip(PERCENTS, found, strict=True)}


def mean_as(name: str, values: list[Any]) -> dict[str, float]:
    """The mean of what was measured, by name; {} if nothing was."""
    known = [value for value in values if value is not None]
    return {name: sum(known) / len(known)} if known else {}


class Instruments:
    """The instruments of one run on one worker; `new_update` starts them anew."""

    def __init__(self, gather: Gather = alone):
        self.gather = gather
        self.new_update()

    def new_update(self) -> None:
        self.sums: list[torch.Tensor] = []  # of each micro-batch
        self.entropies: list[torch.Tensor] = []
        self.cosines: list[float | None] = []  # of each optimizer step
        self.last_P: torch.Tensor | None = None  # gradient of the last optimizer step, if they are compared
        self.clipped: list[bool] = []

    def watch(self, loss: nn.Module) -> None:
        """Reads the importance ratios from what upstream's policy loss is given."""
        loss.register_forward_hook(self._add_ratios, with_kwargs=True)

    @contextmanager
    def watching(self, actor: nn.Module) -> Iterator[None]:
        """Context in which the entropies are read that upstream's actor computes anyway.

        Runs share the actor, so its hook is there only while this run is trained.
        """
        handle = actor.register_forward_hook(self._add_entropies)
        try:
            yield
        finally:
            handle.remove()

    def _add_ratios(self, loss: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        new_BA, old_BA, mask_BA = args[0].detach(), args[1], kwargs["action_mask"].bool()
        self.sums.append(ratio_sums((new_BA - old_BA)[mask_BA]))

    def _add_entropies(self, actor: nn.Module, args: tuple, output: tuple[torch.Tensor, Any]) -> None:
        mask_BA, entropy_BT = args[1].bool(), output[1].entropy.detach()
        self.entropies.append(entropy_BT[:, -mask_BA.shape[1] :][mask_BA])

    def cosine_with_last(self, gradient_P: torch.Tensor) -> float | None:
        """The cosine of an optimizer step's gradient with the last one's; None for the first."""
        last_P, self.last_P = self.last_P, gradient_P
        return None if last_P is None else cosine(last_P, gradient_P)

    def add_step(self, cosine: float | None, clipped: bool) -> None:
        """Adds an optimizer step: the cosine of two gradients on different samples, if known."""
        self.cosines.append(cosine)
        self.clipped.append(clipped)

    def readings(self) -> dict[str, float]:
        """What was read of the update, alike on all workers; what was not measured is left out."""
        self.last_P = None
        return {
            **mean_as("grad_cosine", self.cosines),
            **of_ratios(self._of_all(torch.stack(self.sums).flatten()).view(-1, 4) if self.sums else torch.zeros(1, 4)),
            **mean_as("norm_clipped_frac", self.clipped),
            **quantiles(self._of_all(torch.cat(self.entropies)) if self.entropies else torch.zeros(0)),
        }

    def _of_all(self, values_N: torch.Tensor) -> torch.Tensor:
        """The values of all workers, which need not have equally many."""
        counts_W = self.gather(torch.tensor([len(values_N)], device=values_N.device)).flatten().tolist()
        rows_WN = self.gather(pad(values_N, (0, max(counts_W) - len(values_N))))
        return torch.cat([row_N[:count] for row_N, count in zip(rows_WN, counts_W, strict=True)])
