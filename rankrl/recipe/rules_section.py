"""The section `rules` of a recipe: the hyperparameters that may depend on rank."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from math import isfinite
from typing import Any, Optional

from rankrl.recipe.require import require
from rankrl.recipe.rules import RULES, allowed


def _option(low: float, high: float, fix: str = "") -> Any:
    """A field for a number from `low` to `high` that some rules need; null for the others."""
    return field(default=None, metadata={"range": (low, high, fix)})


@dataclass(frozen=True)
class Rule:
    """One hyperparameter as a function of rank. Options that the rule does not use are refused."""

    rule: str = "constant"
    """Name of the rule; `constant` does not depend on rank."""
    value: Optional[float] = None
    """Value at the reference rank; null takes the scale's reference."""
    at_rank: int = 32
    """Reference rank, at which the rule gives `value`."""
    exponent: Optional[float] = _option(-4, 4)
    """Exponent of r / at_rank, for `power`."""
    c: Optional[float] = _option(0, 1_000_000, "0.59 was measured at nano; 0 makes the rate independent of rank")
    """Rank below which noise dominates the KL per step, for `equal_kl`, which has no default for
    it: it depends on model, batch and task (docs/rules.md 3)."""
    table: Optional[dict[int, float]] = None
    """Value by rank, for `table`; every rank of the grid must be listed."""

    @property
    def options(self) -> dict[str, Any]:
        """Name -> value of every option that some rule has; None if this rule does not use it."""
        return {name: getattr(self, name) for name in OPTIONS}

    def check(self, key: str) -> None:
        knob = key.rpartition(".")[2]
        require(self.rule in allowed(knob), f"{key}.rule", self.rule, ", ".join(allowed(knob)))
        require(self.at_rank >= 1, f"{key}.at_rank", self.at_rank, "a rank of at least 1")
        self._check_used(key)
        self._check_ranges(key, knob)
        acts = "r0" in RULES[self.rule].takes or self.at_rank == Rule.at_rank
        require(acts, f"{key}.at_rank", self.at_rank, f"nothing: rule {self.rule!r} has no such option")

    def _check_used(self, key: str) -> None:
        """Raises ValueError if an option is set that the rule does not use, or one is missing."""
        row = RULES[self.rule]
        for option in fields(self):
            if option.name in OPTIONS:
                name, given, used = f"{key}.{option.name}", getattr(self, option.name), option.name in row.options
                unused = f"nothing: rule {self.rule!r} has no such option"
                require(given is None or used, name, given, unused)
                allowed, fix = _range(option)
                require(given is not None or not used, name, given, f"{allowed}: rule {self.rule!r} needs it", fix)
        unused = f"nothing: rule {self.rule!r} reads its {', '.join(row.options)}"
        require(self.value is None or "x0" in row.takes, f"{key}.value", self.value, unused)

    def _check_ranges(self, key: str, knob: str) -> None:
        for name, given in [("value", self.value), *[(f"table.{r}", v) for r, v in (self.table or {}).items()]]:
            check_value(f"{key}.{name}", knob, given)
        for option in fields(self):
            given = getattr(self, option.name)
            if option.metadata and given is not None:
                low, high, _ = option.metadata["range"]
                require(low <= given <= high, f"{key}.{option.name}", given, *_range(option))


def _range(option: Field[Any]) -> tuple[str, str]:
    """What an option may be, and the hint of its errors."""
    low, high, fix = option.metadata.get("range", (None, None, ""))
    return ("a value" if low is None else f"{low} to {high}"), fix


OPTIONS = tuple(option.name for option in fields(Rule) if option.name not in ("rule", "value", "at_rank"))


def check_value(key: str, knob: str, given: float | None) -> None:
    """Raises ValueError if the value given for a knob is out of range. None is always allowed."""
    if given is None:
        return
    require(isfinite(given), key, given, "a finite number")
    if knob in ("kl", "max_norm", "weight_decay"):
        require(given >= 0, key, given, "at least 0", "0 switches it off")
    elif knob == "warmup":
        require(0 <= given < 1, key, given, "a share of the steps from 0 to below 1")
    elif knob in ("clip_low", "eps"):
        require(0 < given < 1, key, given, "above 0 and below 1")
    elif knob in ("beta1", "beta2"):
        require(0 <= given < 1, key, given, "from 0 to below 1")
    else:
        require(given > 0, key, given, "above 0")


@dataclass(frozen=True)
class Rules:
    """The hyperparameters that may depend on rank."""

    alpha: Rule = field(default_factory=lambda: Rule("constant"))
    """LoRA alpha; the update is scaled by alpha / rank."""
    lr: Rule = field(default_factory=lambda: Rule("constant"))
    """Adam learning rate of the adapter's A."""
    lr_ratio: Rule = field(default_factory=lambda: Rule("constant", value=1.0))
    """Learning rate of B divided by that of A (LoRA+)."""
    kl: Rule = field(default_factory=lambda: Rule("constant"))
    """Level of the KL penalty against the base (per token, in the reward)."""
    clip_low: Rule = field(default_factory=lambda: Rule("constant"))
    """Lower PPO clip range: ratios below 1 - clip_low are clipped."""
    clip_high: Rule = field(default_factory=lambda: Rule("constant"))
    """Upper PPO clip range: ratios above 1 + clip_high are clipped."""
    max_norm: Rule = field(default_factory=lambda: Rule("constant"))
    """Global gradient norm above which the adapter's gradient is scaled down; 0 is off."""
    warmup: Rule = field(default_factory=lambda: Rule("constant"))
    """Share of the optimizer steps, at the start, over which the learning rate rises linearly."""
    beta1: Optional[Rule] = None
    """Decay of AdamW's first mean. Null, here and below: `optimizer` has its one value."""
    beta2: Optional[Rule] = None
    """Decay of AdamW's second mean."""
    eps: Optional[Rule] = None
    """Added to the root of AdamW's second mean."""
    weight_decay: Optional[Rule] = None
    """Share of its weights, times the rate, that a step takes off."""

    @property
    def given(self) -> dict[str, Rule]:
        """Name -> rule of the hyperparameters that have one."""
        found = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return {name: rule for name, rule in found.items() if rule is not None}

    def check(self) -> None:
        for name, rule in self.given.items():
            rule.check(f"rules.{name}")
        alpha, lr = self.alpha, self.lr
        if lr.rule == "equal_kl":
            flat = alpha.rule == "constant" or (alpha.rule == "power" and alpha.exponent == 0)
            require(
                flat,
                "rules.lr.rule",
                lr.rule,
                "constant, power or table while alpha depends on rank",
                "the closed form of equal_kl is derived for constant alpha",
            )
