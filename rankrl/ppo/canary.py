"""A check that the rollout engine acts with the adapter that the trainer trains.

It needs no extra requests: it reads the log-probabilities of every rollout's own tokens. Let d be
the engine's log-probability of a sampled token minus the trainer's. If both hold the same adapter,
d is only noise (bf16, kernels). Two questions are asked, both relative to how far the adapter has
moved:

- Which adapter does the engine hold? If it held the base, d would be
  e = log p_base - log p_adapter; if it were one sync behind, the same with the previous adapter
  instead of the base. The regression share sum(d e) / sum(e^2) is near 1 for a wrong engine and
  near 0 for a right one. The trainer's own rounding is part of both d and e, which biases the share
  by at most half the noise variance over the mean of e^2. So the share is read only where e is at
  least twice the noise (root mean squares).
- Is anything else wrong, such as a corrupted tensor or a wrong scale? The root mean square of d
  must stay near its value at the first rollout, where the adapter is still the base, plus a small
  share of the distance to the base.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

MAX_GAP_NATS = 0.05
"""Mean |d| per token above which a run always stops: 50 times what a right adapter shows."""
WRONG_SHARE = 0.5
"""Regression share above which the engine is taken to hold the base or the previous adapter."""
DISTANCE = 2.0
"""Root mean square of e, in units of the noise, above which a share is read (bias at most 1/8)."""
FEW_TOKENS = 100
"""Tokens, weighted by `MEMORY`, that a share needs before it is read."""
MEMORY = 0.7
"""Factor on the evidence of earlier rollouts each time a new one is added."""
NOISE_FACTOR = 2.5
MOVED_SHARE = 0.03
"""Allowed root mean square of d: `NOISE_FACTOR` times the noise plus this share of the root mean
square of log p_base - log p_adapter."""


class SyncError(RuntimeError):
    """The rollout engine does not act with the trained adapter."""


@dataclass
class Share:
    """Running regression of d on e through the origin, over the rollouts of a run."""

    de: float = 0.0
    ee: float = 0.0
    dd: float = 0.0
    tokens: float = 0.0

    def add(self, d: np.ndarray, e: np.ndarray) -> None:
        """Adds the tokens of one rollout: d and e [N], in nats."""
        sums = {"de": (d * e).sum(), "ee": (e * e).sum(), "dd": (d * d).sum(), "tokens": float(len(d))}
        for name, value in sums.items():
            setattr(self, name, MEMORY * getattr(self, name) + float(value))

    @property
    def value(self) -> float:
        return self.de / self.ee if self.ee else 0.0

    def certain(self, noise_rms: float) -> bool:
        """Whether there is enough evidence to tell a share of 1 from a share of 0."""
        return self.tokens >= FEW_TOKENS and (self.ee / self.tokens) ** 0.5 > DISTANCE * noise_rms


@dataclass
class Canary:
    """The state of one run's check: plain numbers, so that it can be checkpointed with the run."""

    noise_rms: float | None = None
    """Root mean square of d at the first rollout, where engine and trainer both hold the base."""
    base: Share = field(default_factory=Share)
    """Evidence that the engine holds the base."""
    previous: Share = field(default_factory=Share)
    """Evidence that the engine is one sync behind."""

    def check(self, engine: np.ndarray, trainer: np.ndarray, base: np.ndarray, previous: np.ndarray) -> float:
        """Checks one rollout and returns its mean |d|, in nats per token.

        The arguments are log-probabilities [N] of the rollout's tokens; `previous` may cover only
        the first tokens. Raises SyncError, which names what the engine seems to hold.
        """
        d = engine - trainer
        gap, rms = float(np.abs(d).mean()), float(np.sqrt((d * d).mean()))
        if self.noise_rms is None:
            self.noise_rms = rms
        e = base - trainer
        self.base.add(d, e)
        self.previous.add(d[: len(previous)], previous - trainer[: len(previous)])
        moved = float(np.sqrt((e * e).mean()))
        suspects = {"the base model": self.base, "the adapter of the previous step": self.previous}
        held = [name for name, share in suspects.items() if share.certain(self.noise_rms) and share.value > WRONG_SHARE]
        if held:
            share = max(suspects[name].value for name in held)
            raise SyncError(
                f"adapter sync: the rollout engine acts with {' or '.join(held)}: {share:.0%} of the difference to it shows in "
                f"the engine's log-probabilities (gap {gap:.4f} nats a token)"
            )
        limit = NOISE_FACTOR * self.noise_rms + MOVED_SHARE * moved
        if gap > MAX_GAP_NATS or rms > limit:
            raise SyncError(
                f"adapter sync: the rollout engine's log-probabilities differ from the trainer's by {gap:.4f} nats a token (rms "
                f"{rms:.4f}, allowed {limit:.4f}; the adapter has moved {moved:.4f} from the base): a tensor or a scale is "
                "wrong in the engine"
            )
        return gap

    def state(self) -> dict:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict) -> Canary:
        return cls(state["noise_rms"], Share(**state["base"]), Share(**state["previous"]))
