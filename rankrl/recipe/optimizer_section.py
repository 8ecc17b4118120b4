"""The section `optimizer` of a recipe: how a gradient becomes a step of the policy's adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rankrl.recipe.require import require

TRAINED = ("both", "b")
"""What of an adapter is trained: A and B, or B alone."""
MOMENTS = {"adamw": 2, "spectral": 1}
"""Method -> fp32 numbers that it keeps of each trained parameter."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "adamw": ("betas", "eps", "weight_decay"),
    "spectral": ("momentum", "weight_decay"),
}
"""Options of each method; the others have no effect."""
KNOBS = {"adamw": ("beta1", "beta2", "eps", "weight_decay"), "spectral": ("weight_decay",)}
"""Those of them that may depend on rank, by their names in `rules`."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of the policy's adapter; the critic keeps AdamW with its defaults."""

    method: str = "adamw"
    """adamw; or spectral, a step of rank-invariant size (LoRA-Muon, arXiv 2606.12921): rules.lr is
    then the spectral norm of the change of delta W = scale B A, whatever the rank and alpha."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay of AdamW's two running means."""
    eps: float = 1e-8
    """Added to the root of AdamW's second mean (units of the gradient)."""
    weight_decay: float = 0.0
    """Share of its weights, times the rate, that a step takes off: of A and of B for adamw, of
    their product for spectral."""
    momentum: float = 0.9
    """Decay of the running mean of the gradient, for spectral; 0 takes each gradient alone."""

    @property
    def moments(self) -> int:
        """Numbers of fp32 that are kept of each trained parameter."""
        return MOMENTS[self.method]

    @property
    def settings(self) -> dict[str, Any]:
        """Option -> value of those that the method has."""
        return {name: getattr(self, name) for name in OPTIONS[self.method]}

    @property
    def by_knob(self) -> dict[str, float]:
        """Name in `rules` -> value of the options that may depend on rank."""
        beta1, beta2 = self.betas
        return {"beta1": beta1, "beta2": beta2, "eps": self.eps, "weight_decay": self.weight_decay}

    def at(self, values: Mapping[str, float]) -> Optimizer:
        """This section with the values that rules of rank gave, by name in `rules`.

        Raises ValueError if one is out of range.
        """
        own = self.by_knob | {name: values[name] for name in KNOBS[self.method] if name in values}
        betas, eps, decay = (own["beta1"], own["beta2"]), own["eps"], own["weight_decay"]
        found = replace(self, betas=betas, eps=eps, weight_decay=decay)
        found.check()
        return found

    @property
    def idle(self) -> dict[str, Any]:
        """Option -> value of those that are set and that the method lacks."""
        given = {option.name: getattr(self, option.name) for option in fields(self)[1:]}
        default = Optimizer()
        return {k: v for k, v in given.items() if v != getattr(default, k) and k not in OPTIONS[self.method]}

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        require(self.method in OPTIONS, "optimizer.method", self.method, " or ".join(OPTIONS))
        betas = self.betas
        fine = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        require(fine, "optimizer.betas", list(betas), "two numbers from 0 to below 1", "for instance [0.9, 0.95]")
        require(0 < self.eps < 1, "optimizer.eps", self.eps, "above 0 and below 1")
        require(0 <= self.weight_decay < 100, "optimizer.weight_decay", self.weight_decay, "from 0 to below 100")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "from 0 to below 1")

    def __str__(self) -> str:
        options = [f"{k} {[*v] if isinstance(v, tuple) else format(v, 'g')}" for k, v in self.settings.items()]
        return f"{self.method}, {', '.join(options)}"


def check_values(optimizer: Optimizer, rules: Mapping[str, Any]) -> None:
    """Raises ValueError if a value of the section is set that a rule does not read."""
    default = Optimizer().by_knob
    for name, value in optimizer.by_knob.items():
        rule = rules.get(name)
        reads = rule is None or (rule.value is None and rule.rule != "table") or value == default[name]
        key = "betas" if name.startswith("beta") else name
        require(reads, f"optimizer.{key}", value, f"its default: rules.{name} has values of its own")


def check_rate(optimizer: Optimizer, rule: Any) -> None:
    """Raises ValueError if the spectral method is left with the scale's rate, which is AdamW's."""
    own = optimizer.method != "spectral" or rule.value is not None or rule.rule == "table"
    why = "optimizer.method=spectral: a rate is the norm of a step of delta W, and the scale's is AdamW's"
    require(own, "rules.lr.value", rule.value, "a rate of its own, for instance 0.01", why)
