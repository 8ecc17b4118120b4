"""The rules of rank: pure functions to one hyperparameter, and the one table that names them.

A function is given what its parameters name: `r`, the rank; `x0`, the value at the reference rank
`r0` (32 unless set); `alpha` and `alpha0`, LoRA's alpha at r and at r0; `knob`, the hyperparameter;
`kl`, the KL of each rank's first step, measured before the run; or an option of the recipe.
s = alpha / r is the scale of the update. Derivations, and what was measured for and against each
rule: docs/rules.md.

A new rule takes three places: its function and its row in `RULES`, and the field of its option in
`Rule` (recipe/rules_section.py). Names in errors, checks and `rankrl explain` follow from these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from math import sqrt

GIVEN = ("knob", "r", "x0", "r0", "alpha", "alpha0", "kl")
"""What every rule may ask for by name; any other parameter is an option."""


@dataclass(frozen=True)
class Row:
    """A rule."""

    value: Callable[..., float]
    """Its function."""
    formula: str
    """Formula in words; {c:g} stands for the option c."""
    source: str
    """Where it comes from."""
    evidence: str = ""
    """Begins with measured here, derived or conjecture. Every rule has some at every knob."""
    knobs: tuple[str, ...] = ()
    """Hyperparameters that it may give; empty: all."""
    at_knob: Mapping[str, str] = field(default_factory=dict)
    """Hyperparameter -> the evidence there, where it differs from `evidence`."""

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """What its function is given. Without x0 it has no `value`, without r0 no `at_rank`."""
        return tuple(signature(self.value).parameters)

    def evidence_at(self, knob: str) -> str:
        """The evidence for the rule as one of this hyperparameter."""
        return self.at_knob.get(knob, self.evidence)

    @property
    def measured(self) -> bool:
        """Whether its value is known only after a measurement on the base, before the run."""
        return "kl" in self.takes

    @property
    def options(self) -> tuple[str, ...]:
        """Options that it needs; others must be left out."""
        return tuple(name for name in self.takes if name not in GIVEN)


def constant(x0: float) -> float:
    """x0 at every rank: the dependence on rank is off."""
    return x0


def equal_kl(r: int, x0: float, r0: int, c: float) -> float:
    """x0 sqrt((1 + c / r0) / (1 + c / r)): the rate whose first step has the KL of rank r0.

    For constant alpha. c = 0 leaves the rate independent of rank ("LoRA Without Regret"); one first
    step at nano fits c = 0.59. It says nothing of later steps, where the rate also sets how fast A
    rotates.
    """
    return x0 * sqrt((1 + c / r0) / (1 + c / r))


def measured(r: int, x0: float, r0: int, kl: Mapping[int, float]) -> float:
    """x0 sqrt(KL(r0) / KL(r)), with `kl` of the first optimizer step at rate x0, by rank.

    KL goes as the square of the rate, so every rank's first step gets the KL of rank r0. It needs
    no c, and holds for any alpha, allocation and init: whatever acts is what is measured.
    """
    return x0 * sqrt(kl[r0] / kl[r])


def gradient_scale(r: int, x0: float, r0: int, alpha: float, alpha0: float) -> float:
    """x0 (s sqrt r) / (s0 sqrt r0): the bound grows as the gradient norm of (A, B) does.

    A fixed bound clips low rank harder, at no cost that was shown: Adam cancels a constant factor
    of the gradient. So the bound only limits single spikes.
    """
    return x0 * (alpha / r * sqrt(r)) / (alpha0 / r0 * sqrt(r0))


def warmup_by_rank(r: int, x0: float) -> float:
    """x0 at r >= 8, at least 0.1 at r <= 4, midway between. x0 is the share at high rank.

    A conjecture: low rank takes noisier first sign steps. What was measured speaks against it.
    """
    long = max(x0, 0.1)
    return x0 if r >= 8 else long if r <= 4 else (x0 + long) / 2


def power(r: int, x0: float, r0: int, exponent: float) -> float:
    """x0 (r / r0)^exponent. For alpha: 0 keeps alpha, 1/2 is rsLoRA, 1 keeps alpha / r."""
    return x0 * (r / r0) ** exponent


def from_table(knob: str, r: int, table: dict[int, float]) -> float:
    """table[r]. Raises ValueError, one line, for a rank that is not listed."""
    if r not in table:
        allowed = "one entry for every rank of the grid"
        raise ValueError(f"rules.{knob}.table: got no entry for rank {r}, allowed: {allowed}")
    return table[r]


RULES = {
    "constant": Row(
        constant,
        "x0",
        "reference point",
        at_knob={
            "alpha": "measured here: one best rate at ranks 1 to 256 (4 seeds); rank 1 gains .028 less than 32 (12 seeds)",
            "lr": "measured here: ranks 1, 4, 32, 256 have one best mean of five rates, at constant alpha (4 seeds)",
            "lr_ratio": "measured here: 4 loses .05 at rank 1 (+.233 for +.282) and at rank 32 (6 seeds)",
            "kl": "measured here: +.286 at rank 1 with 1e-3 and with 0 (2 seeds)",
            "clip_low": "conjecture: PPO's .2",
            "clip_high": "conjecture: DAPO's .28",
            "max_norm": "measured here: scales down 82-90 % of rank 1's steps, without loss",
            "warmup": "measured here: by_rank not shown to help rank 1 (+.269 with it and c = 4, else +.278, 3 seeds)",
            **dict.fromkeys(
                ("beta1", "beta2", "eps", "weight_decay"), "conjecture: no value is measured against another"
            ),
        },
    ),
    "equal_kl": Row(
        equal_kl,
        "x0 sqrt((1 + {c:g}/r0) / (1 + {c:g}/r))",
        "first-step KL under Adam; c <= 12 by LoRA Without Regret",
        "measured here: c = .59 of one step; +.293 with it at rank 1, +.288 without (12 seeds); c = 4 +.269 (3 seeds)",
        ("lr",),
    ),
    "measured": Row(
        measured,
        "x0 sqrt(KL(r0) / KL(r)), KL of the first step",
        "KL to the base of one exact first step of Adam, full vocabulary, held-out prompts",
        "derived; the KL is measured on the base, before the run; not shown to help the score",
        ("lr",),
    ),
    "gradient_scale": Row(
        gradient_scale,
        "x0 (s sqrt r) / (s0 sqrt r0), s = alpha/r",
        "gradient norm of (A, B) at the first step",
        "derived; measured here: +.291 with it at rank 1, +.282 without (6 seeds); not shown to help",
        ("max_norm",),
    ),
    "by_rank": Row(
        warmup_by_rank,
        "x0 at r >= 8, max(x0, 0.1) at r <= 4",
        "conjecture: suppresses noisy first steps",
        "conjecture; measured here with c = 4: +.269 at rank 1, +.308 with neither (3 and 2 seeds)",
        ("warmup",),
    ),
    "power": Row(
        power,
        "x0 (r/r0)^{exponent:g}",
        "LoRA (2106.09685), rsLoRA (2312.03732)",
        "conjecture",
        ("alpha", "lr", "kl", "eps", "weight_decay"),
        {
            "alpha": "derived; measured here: 1, with one rate, costs rank 1 .129 (4 seeds), at nano-hard .145 (2 seeds)",
            "lr": "measured here: the best goes with exponent .01, -.26, -.56 for 0, 1/2, 1 of alpha (4 seeds)",
        },
    ),
    "table": Row(from_table, "table[r]", "recipe", "conjecture: yours"),
}


def allowed(knob: str) -> tuple[str, ...]:
    """Names of the rules that may give a hyperparameter. None gives alpha from alpha."""
    able = {name: row for name, row in RULES.items() if not row.knobs or knob in row.knobs}
    return tuple(name for name, row in able.items() if knob != "alpha" or not {"alpha", "alpha0"} & {*row.takes})
