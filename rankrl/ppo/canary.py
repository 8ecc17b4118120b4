"""A check that the rollout engine acts with the adapter that the trainer trains.

It needs no extra requests: it reads the log-probabilities of every rollout's own tokens. Let d be
the engine's log-probability of a sampled token minus the trainer's. If both hold the same adapter,
d is only noise (bf16, kernels). Two questions are asked, both relative to the noise of the first
rollout, where the adapter is still the base, and to how far the adapter has moved:

- Which adapter does the engine hold? If it held the base, d would be
  e = log p_base - log p_adapter; if it were one sync behind, the same with the previous adapter
  instead of the base. The regression share sum(d e) / sum(e^2) is near 1 for a wrong engine. For a
  right one it is near 0 where e is larger than the trainer's own rounding, which is part of both d
  and e, and about 1/2 where e is nothing else. So any share above `WRONG_SHARE` is evidence,
  however small e is beside the noise, once it is certain: it adds up until then.
- Is anything else wrong, such as a corrupted tensor or a wrong scale? The mean and the root mean
  square of d (but for the largest hundredth) must stay near their values at the first rollout,
  plus a small share of the distance to the base.

That the adapter's tensors arrive unchanged is checked at once, by their SHA-256 (`check_digests`).
What no first rollout can tell is a base that is not the same in engine and trainer. So the mean of
|d| has a limit of its own, which the scale states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from rankrl.ppo.serving import Loaded

WRONG_SHARE = 0.6
"""Regression share above which the engine is nearer to a suspect than rounding alone explains."""
CERTAIN = 5.0
"""Standard errors by which the share must be above it. 25 tokens or fewer never show that."""
NOISE_FACTOR = 2.5
MOVED_SHARE = 0.03
"""Allowed mean and root mean square of d: `NOISE_FACTOR` times that of the first rollout plus this
share of that of log p_base - log p_adapter."""


class SyncError(RuntimeError):
    """The rollout engine does not act with the trained adapter."""


@dataclass
class Evidence:
    """Evidence of the last rollouts that the engine acts with a suspect instead of the adapter.

    It is a running regression of d on e through the origin. It starts anew whenever the share is
    below `WRONG_SHARE`, so that a long time without a fault does not hide one that begins.
    """

    de: float = 0.0
    ee: float = 0.0
    yy: float = 0.0
    """Sum of the squares of y = e (d - WRONG_SHARE e), whose own sum says if the share is above."""

    def add(self, d: np.ndarray, e: np.ndarray) -> None:
        """Adds the tokens of one rollout: d and e [N], in nats."""
        y = e * (d - WRONG_SHARE * e)
        self.de += float((d * e).sum())
        self.ee += float((e * e).sum())
        self.yy += float((y * y).sum())
        if self.excess <= 0:
            self.de = self.ee = self.yy = 0.0

    @property
    def excess(self) -> float:
        return self.de - WRONG_SHARE * self.ee

    @property
    def share(self) -> float:
        """The share, or 0 without evidence."""
        return self.de / self.ee if self.ee else 0.0

    @property
    def certain(self) -> bool:
        """Whether the share is above `WRONG_SHARE` by `CERTAIN` standard errors."""
        return self.excess > CERTAIN * self.yy**0.5


@dataclass
class Canary:
    """The state of one run's check: plain numbers, so that it can be checkpointed with the run."""

    max_gap_nats: float
    """Mean |d| above which a run always stops (`max_sync_gap_nats` of the scale)."""
    noise_gap: float | None = None
    """Mean |d| at the first rollout, where engine and trainer both hold the base."""
    noise_rms: float | None = None
    """Root mean square of d at the first rollout, but for the largest hundredth."""
    base: Evidence = field(default_factory=Evidence)
    """Evidence that the engine holds the base."""
    previous: Evidence = field(default_factory=Evidence)
    """Evidence that the engine is one sync behind."""

    def check(self, engine: np.ndarray, trainer: np.ndarray, base: np.ndarray, previous: np.ndarray) -> float:
        """Checks one rollout and returns its mean |d|, in nats per token.

        The arguments are log-probabilities [N] of the rollout's tokens; `previous` may cover only
        the first tokens. Raises SyncError, which names what the engine seems to hold.
        """
        d, e = engine - trainer, base - trainer
        if self.noise_gap is None or self.noise_rms is None:
            self.noise_gap, self.noise_rms = mean_abs(d), bulk_rms(d)
        self.base.add(d, e)
        self.previous.add(d[: len(previous)], previous - trainer[: len(previous)])
        moved = float(np.sqrt((e * e).mean()))
        gap, allowed = mean_abs(d), NOISE_FACTOR * self.noise_gap + MOVED_SHARE * mean_abs(e)
        rms, allowed_rms = bulk_rms(d), NOISE_FACTOR * self.noise_rms + MOVED_SHARE * moved
        wrong = gap > min(allowed, self.max_gap_nats) or rms > allowed_rms
        said = f"{gap:.4f} nats a token, at the first rollout {self.noise_gap:.4f}"
        self._name_suspects(wrong, said)
        if gap > self.max_gap_nats:
            raise SyncError(
                f"adapter sync: engine and trainer differ by {said}, allowed scale.max_sync_gap_nats={self.max_gap_nats:g}. If "
                "the figures are alike, the adapter is not the cause: try scale.model.attention or scale.model.dtype=float32; if "
                "this model is so noisy, raise the limit. Otherwise a tensor or a scale is wrong in the engine"
            )
        if wrong:
            raise SyncError(
                f"adapter sync: the rollout engine's log-probabilities differ from the trainer's by {said} (allowed {allowed:.4f}; "
                f"rms {rms:.4f}, allowed {allowed_rms:.4f}; the adapter has moved {moved:.4f} from the base): a tensor or a "
                "scale is wrong in the engine"
            )
        return gap

    def _name_suspects(self, wrong: bool, said: str) -> None:
        """Raises SyncError if a suspect is certain, or if it explains what is `wrong`."""
        suspects = {"the base model": self.base, "the adapter of the previous step": self.previous}
        held = {name: found.share for name, found in suspects.items() if found.certain or (wrong and found.share)}
        if held:
            raise SyncError(
                f"adapter sync: the rollout engine acts with {' or '.join(held)}: {max(held.values()):.0%} of the difference to "
                f"it shows in the engine's log-probabilities (gap {said})"
            )

    def state(self) -> dict:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict, max_gap_nats: float) -> Canary:
        """The canary of a checkpoint.

        One of an earlier rankrl has no mean gap of the first rollout, which is at most the root
        mean square, and evidence of another form, which starts anew.
        """
        noise_gap = state.get("noise_gap", state["noise_rms"])
        found = [Evidence(**state[name]) if "yy" in state[name] else Evidence() for name in ("base", "previous")]
        return cls(max_gap_nats, noise_gap, state["noise_rms"], *found)


def check_digests(loaded: list[Loaded]) -> None:
    """Raises SyncError if a worker of an engine holds other tensors than the trainer has sent."""
    for engine, adapter in enumerate(loaded):
        for worker, held in enumerate(adapter.held):
            if held != adapter.sent:
                raise SyncError(
                    f"adapter sync: worker {worker} of engine {engine} holds tensors with SHA-256 {held}, the trainer has sent "
                    f"{adapter.sent}: they changed on the way (compare the versions of rankrl, torch and vLLM on the nodes)"
                )


def mean_abs(x: np.ndarray) -> float:
    return float(np.abs(x).mean())


def bulk_rms(x: np.ndarray) -> float:
    """Root mean square without the largest hundredth of |x|.

    In bf16 single tokens of a right engine are apart by nats, in some rollouts and not in others.
    """
    bulk = np.sort(np.abs(x))[: len(x) - len(x) // 100]
    return float(np.sqrt((bulk * bulk).mean()))
