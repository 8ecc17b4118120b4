"""The section `allocation` of a recipe: how a budget of parameters is spent on modules."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Optional

from rankrl.recipe.rank_table import LARGEST_SERVED
from rankrl.recipe.require import require

METHODS = {"uniform": (), "profile": ("profile",), "greedy": ("value", "prompts"), "proportional": ("value", "prompts")}
PROFILES = {"linear": ("slope",), "triangular": ("peak",), "last_k": ("last_k",), "mlp": (), "table": ("table",)}
VALUES = ("signal", "activation", "fisher")
CONTROLS = ("none", "random", "reversed")
NON_UNIFORM = ("control", "tau", "budget_rank", "budget_params", "min_rank", "max_rank")


@dataclass(frozen=True)
class Allocation:
    """How the parameters are spent on modules; each rank of a module costs d_in + d_out.

    Options that the method does not use must be left out.
    """

    method: str = "uniform"
    """uniform (the run's rank everywhere); profile (by layer or type, no data); greedy or
    proportional (by a measurement)."""
    profile: Optional[str] = None
    """What the rank is in proportion to: linear or triangular over the layers; last_k layers only;
    mlp only; a table by module type."""
    slope: Optional[float] = None
    """For profile linear, -1 to 1: the last layer has about 1 + slope times the mean rank, the
    first about 1 - slope times."""
    peak: Optional[float] = None
    """For profile triangular: where the rank is largest, 0 (first layer) to 1 (last layer)."""
    last_k: Optional[int] = None
    """For profile last_k: number of adapted layers, counted from the last."""
    table: Optional[dict[str, float]] = None
    """For profile table: weight by module type (q_proj, ...), one for every adapted type; 0 drops
    the type."""
    value: Optional[str] = None
    """What greedy and proportional measure: signal (held-out policy-gradient energy), activation or
    fisher."""
    prompts: int = 64
    """Prompts that the base answers for the measurement, in 8 samples each."""
    control: str = "none"
    """Control with the same budget: random deals the importance to modules at random (by the run's
    seed), reversed reverses its order; none is no control."""
    tau: float = 1.0
    """1 is the method's proposal, 0 is uniform; a share in between shrinks the proposal towards
    uniform."""
    budget_rank: Optional[float] = None
    """The budget is the parameters of this uniform rank; null takes the run's rank."""
    budget_params: Optional[int] = None
    """Budget in parameters, instead of `budget_rank`."""
    min_rank: int = 0
    """Least rank of a module; 0 lets modules be dropped."""
    max_rank: Optional[int] = None
    """Largest rank of a module. null is eight times the budget's rank (at least 8) if the
    allocation is measured, else the largest that vLLM serves."""

    @property
    def measured(self) -> bool:
        """Whether the method needs a measurement of importance."""
        return self.method in ("greedy", "proportional")

    @property
    def label(self) -> str:
        """The options that are set, as one line of text."""
        given = {option.name: getattr(self, option.name) for option in fields(self)}
        set_here = [f"{name} {value}" for name, value in given.items() if value != getattr(Allocation, name)]
        return ", ".join(set_here) or "method uniform"

    def check(self) -> None:
        """Raises ValueError for a value that is not allowed, or an option that is not used."""
        require(self.method in METHODS, "allocation.method", self.method, ", ".join(METHODS))
        used = {*METHODS[self.method], *(NON_UNIFORM if self.method != "uniform" else ())}
        if self.method == "profile":
            require(self.profile in PROFILES, "allocation.profile", self.profile, ", ".join(PROFILES))
            used |= {*PROFILES[self.profile or ""]}
        for option in fields(self)[1:]:
            self._check_used(option.name, option.default, option.name in used)
        if self.measured:
            require(self.value in VALUES, "allocation.value", self.value, ", ".join(VALUES))
            fix = "it is split in halves"
            require(self.prompts >= 4, "allocation.prompts", self.prompts, "an integer of at least 4", fix)
        require(self.control in CONTROLS, "allocation.control", self.control, ", ".join(CONTROLS))
        self._check_ranges()

    def _check_used(self, name: str, default: Any, used: bool) -> None:
        given, chosen = getattr(self, name), f"method {self.method!r}"
        if self.method == "profile" and any(name in options for options in PROFILES.values()):
            chosen = f"profile {self.profile!r}"
            require(not used or given is not None, f"allocation.{name}", given, f"a value: {chosen} needs it")
        require(used or given == default, f"allocation.{name}", given, f"nothing: {chosen} has no such option")

    def _check_ranges(self) -> None:
        allowed = {
            "slope": (lambda v: -1 <= v <= 1 and v != 0, "-1 to 1, not 0"),
            "peak": (lambda v: 0 <= v <= 1, "0 to 1"),
            "last_k": (lambda v: v >= 1, "an integer of at least 1"),
            "table": (lambda v: _weights(v), "weights of at least 0, some above"),
            "tau": (lambda v: 0 <= v <= 1, "0 (uniform) to 1 (the proposal)"),
            "budget_rank": (lambda v: v > 0 and isfinite(v), "above 0"),
            "budget_params": (lambda v: v >= 1, "an integer of at least 1"),
            "min_rank": (lambda v: v >= 0, "an integer of at least 0"),
            "max_rank": (lambda v: max(1, self.min_rank) <= v <= LARGEST_SERVED, f"min_rank to {LARGEST_SERVED}"),
        }
        for name, (fine, says) in allowed.items():
            given = getattr(self, name)
            require(given is None or fine(given), f"allocation.{name}", given, says)
        both = self.budget_rank is not None and self.budget_params is not None
        require(not both, "allocation.budget_params", self.budget_params, "nothing beside allocation.budget_rank")


def _weights(table: dict[str, float]) -> bool:
    values = table.values()
    return all(v >= 0 and isfinite(v) for v in values) and any(v > 0 for v in values)
