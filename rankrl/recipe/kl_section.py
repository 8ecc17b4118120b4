"""The section `kl_schedule` of a recipe: the KL coefficient over the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from rankrl.recipe.require import require

KL_SHAPES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("final",),
    "cosine": ("final",),
    "early_anchor": ("anchor", "anchor_share"),
    "adaptive": ("horizon_share", "horizon_steps"),
}


@dataclass(frozen=True)
class KLSchedule:
    """The KL coefficient over the steps, as a share of the level that `rules.kl` gives."""

    shape: str = "constant"
    """constant; linear or cosine (to `final`); early_anchor (from `anchor` times the level down to
    the level); adaptive (steers the KL to `target`)."""
    final: float = 0.0
    """Share of the level at the last step, for linear and cosine."""
    anchor: float = 10.0
    """Multiple of the level at step 0, for early_anchor."""
    anchor_share: float = 0.1
    """Share of the steps over which early_anchor falls to the level."""
    target: Optional[float] = None
    """KL to the base (nats per token) that `adaptive` steers to."""
    horizon_share: Optional[float] = 0.05
    """Horizon of `adaptive`, as a share of the run's PPO steps. One step changes the coefficient by
    at most a share of 0.2 / horizon, and a whole run by at most a factor of exp(0.2 / share): 55 by
    default. A horizon is at least one step. null: `horizon_steps` says it."""
    horizon_steps: float = 50.0
    """Horizon in PPO steps, whatever the length of the run; with horizon_share=null."""

    def horizon(self, steps: int) -> float:
        """Horizon of `adaptive` in a run of `steps` PPO steps, in PPO steps."""
        return self.horizon_steps if self.horizon_share is None else max(self.horizon_share * steps, 1.0)

    def check(self) -> None:
        require(self.shape in KL_SHAPES, "kl_schedule.shape", self.shape, ", ".join(KL_SHAPES))
        adaptive = self.shape == "adaptive"
        require(
            adaptive or self.target is None,
            "kl_schedule.target",
            self.target,
            "nothing unless kl_schedule.shape=adaptive",
        )
        if adaptive:
            require(
                self.target is not None and self.target > 0,
                "kl_schedule.target",
                self.target,
                "a KL above 0 (nats per token)",
            )
        used = KL_SHAPES[self.shape]
        for option in ("final", "anchor", "anchor_share", "horizon_share", "horizon_steps"):
            value, default = getattr(self, option), getattr(type(self), option)
            key = f"kl_schedule.{option}"
            require(option in used or value == default, key, value, f"nothing: shape {self.shape!r} has no such option")
        require(self.final >= 0, "kl_schedule.final", self.final, "at least 0")
        require(self.anchor >= 1, "kl_schedule.anchor", self.anchor, "at least 1")
        require(0 < self.anchor_share <= 1, "kl_schedule.anchor_share", self.anchor_share, "above 0 and at most 1")
        require(self.horizon_steps > 0.2, "kl_schedule.horizon_steps", self.horizon_steps, "above 0.2")
        share = self.horizon_share
        require(share is None or 0 < share <= 1, "kl_schedule.horizon_share", share, "above 0 and at most 1, or null")
        require(
            share is None or self.horizon_steps == KLSchedule.horizon_steps,
            "kl_schedule.horizon_steps",
            self.horizon_steps,
            "nothing: kl_schedule.horizon_share gives the horizon",
            "kl_schedule.horizon_share=null",
        )
