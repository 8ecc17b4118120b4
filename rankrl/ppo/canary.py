"""Does the engine act with the adapter that the trainer trains? Read from the log-probabilities of every rollout's own tokens.

The engine's log-probability of a sampled token minus the trainer's is noise d (bf16, kernels) if both hold the same adapter. Two
questions are asked of it, both relative to how far the adapter has moved:

- Which adapter is it? If the engine held the base, d would be e = log p_base - log p_adapter; if it were one sync behind, the same
  with the previous adapter. The regression share sum(d e) / sum(e^2) is near 1 for a wrong engine and near 0 for a right
  one. The trainer's own rounding stands in d and in e, which biases the share by at most half the noise variance over the
  mean of e^2, so it is read only where the distance e is at least twice the noise.
- Is anything else wrong (a corrupted tensor, a wrong scale)? The root mean square of d must stay near its value at the first
  rollout, where the adapter is still the base, plus a small share of the distance to the base.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

MAX_GAP_NATS = 0.05
"""Mean |d| at which a run stops whatever the rest says: 50 times what a right adapter shows."""
WRONG_SHARE = 0.5
DISTANCE = 2.0
"""Root mean square of e, in units of the noise, from which a share is read (bias at most 1/8)."""
FEW_TOKENS = 100
MEMORY = 0.7
"""Weight of the evidence of earlier rollouts."""
NOISE_FACTOR = 2.5
MOVED_SHARE = 0.03


class SyncError(RuntimeError):
    """The rollout engine does not act with the trained adapter."""


@dataclass
class Share:
    """Running regression of d on e through the origin."""

    de: float = 0.0
    ee: float = 0.0
    dd: float = 0.0
    tokens: float = 0.0

    def add(self, d: np.ndarray, e: np.ndarray) -> None:
        sums = {"de": (d * e).sum(), "ee": (e * e).sum(), "dd": (d * d).sum(), "tokens": float(len(d))}
        for name, value in sums.items():
            setattr(self, name, MEMORY * getattr(self, name) + float(value))

    @property
    def value(self) -> float:
        return self.de / self.ee if self.ee else 0.0

    def certain(self, noise_rms: float) -> bool:
        """Whether a share of 1 and a share of 0 are told apart."""
        return self.tokens >= FEW_TOKENS and (self.ee / self.tokens) ** 0.5 > DISTANCE * noise_rms


@dataclass
class Canary:
    """State of one run's check; plain numbers, so that it is checkpointed with the run."""

    noise_rms: float | None = None
    """RMS of d at the first rollout, where engine and trainer both hold the base."""
    base: Share = field(default_factory=Share)
    previous: Share = field(default_factory=Share)

    def check(self, engine: np.ndarray, trainer: np.ndarray, base: np.ndarray, previous: np.ndarray) -> float:
        """Log-probabilities [N] of one rollout's tokens; `previous` may cover only the first of them. Returns mean |d| in nats.

        Raises SyncError, naming what the engine seems to hold.
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
