"""What speaks for the settings of a recipe that no rule of rank gives; rules have their own.

Gains are of rank 1 and rank 32, at nano, over a base score of 0.269, or differences from the
default (docs/study, parts B to D). Every text begins with measured here, derived or conjecture.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from rankrl.recipe.schema import Recipe


def against(nano: str, hard: str, seeds: str, shown: str = "not shown to help") -> str:
    """What a setting did at rank 1 on both tasks of the study."""
    return f"measured here: rank 1 minus the default's {nano} at nano, {hard} at nano-hard ({seeds} seeds); {shown}"


NONE_APART = "no estimator is shown to be better (3 seeds)"
EVIDENCE: dict[str, dict[Any, str]] = {
    "advantage.method": {
        "gae": f"measured here: +.278, +.290; {NONE_APART}",
        "group_mean": against("-.007", "-.009", "8 and 2"),
        "rloo": f"measured here: +.279, +.323; {NONE_APART}",
        "group_norm": f"measured here: +.279, +.330; {NONE_APART}",
        "batch_mean": f"measured here: +.284, +.304; {NONE_APART}",
        "shrinkage": against("+.007", "+.007", "4 and 2"),
        "history": "derived: unbiased; measured here: +.307 at rank 1, gae +.286, with 240 items (2 seeds); not shown to help",
    },
    "init.method": {
        "kaiming": "measured here: no other start is shown to beat it (2 to 36 seeds)",
        "rlmo": against("+.007", "+.002", "36"),
        "olora_tail": against("-.094", "-.078", "2", "shown to lose at nano"),
        "orthonormal": against("-.015", "-.001", "2"),
        "etf": against("+.006", "-.001", "4 and 8"),
        "rlpo": against("-.015", "-.009", "2"),
        "eva": against("-.073", "-.020", "2"),
        "pg_subspace": against("-.019", "-.003", "2 and 8"),
        "pissa": against("-.122", "-.078", "2", "shown to lose at nano-hard"),
        "olora": against("-.549", "-.450", "2", "shown to lose"),
    },
    "allocation.method": {
        "uniform": "measured here: all modules +.308 at rank 1, an eighth of it in o_proj alone +.168 (2 seeds)",
        "profile": "measured here: at rank 1 a slope of .5 over the layers leaves it uniform (2 seeds)",
        "greedy": against("-.012", "-.001", "2"),
        "proportional": against("-.017", "+.006", "2"),
    },
    "trained": {
        "both": "measured here: a frozen A costs rank 1 .06 to .18 at nano, at rates up to 1e-3 (4 seeds); shown",
        "b": "measured here: +.219, +.284 at the best of three rates, the default +.296, +.301 (2 seeds); up to 1e-3 shown to lose",
    },
    "optimizer.method": {
        "adamw": "measured here: spectral does not beat it (2 seeds)",
        "spectral": against("-.046", "-.046", "2"),
    },
    "lr_shape": {
        "constant": "measured here: neither linear nor cosine is shown to help (6 seeds)",
        "linear": "measured here: +.289, +.317, constant +.282, +.303 (6 seeds); not shown to help",
        "cosine": against("+.007", "-.010", "8 and 2"),
    },
    "trust_region.on": {
        False: "measured here: at the right rate it adds nothing at rank 1 (6 seeds)",
        True: "measured here: from a rate 4 times too large +.279, +.296, without it +.081, +.072 (6 and 3 seeds)",
    },
    "kl_anchor.reference": {
        "base": "measured here: no other anchor is shown to help (2 seeds)",
        "ema": against("-.009", "+.017", "2"),
    },
    "kl_anchor.place": {
        "reward": "measured here: the loss is not shown to help (2 seeds)",
        "loss": "measured here: k2 +.284 and k3 +.278 at rank 1, the reward +.286 (2 seeds); not shown to help",
    },
    "average.method": {
        None: "measured here: no average is shown to help (2 to 4 seeds)",
        "mean": against("+.009", "-.003", "4 and 2"),
        "trajectory": "measured here: +.254 at rank 1, the last adapter +.286 (2 seeds); not shown to help",
    },
    "brakes.on": {
        False: "measured here: brakes are not shown to help (2 to 4 seeds)",
        True: "measured here: stop one step in 240, +.281 at rank 1, without +.286 (2 seeds); none with 6,000 items (4 seeds)",
    },
}
"""Dotted key -> its value -> the evidence. Keys that end in `on` are properties of a section."""


def settings(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(key, value, evidence) of each of these settings, as a recipe has it."""
    found = [(key, reduce(getattr, key.split("."), recipe)) for key in EVIDENCE]
    return [(key.removesuffix(".on"), _text(value), EVIDENCE[key][value]) for key, value in found]


def _text(value: Any) -> str:
    return {True: "on", False: "off", None: "off"}.get(value, str(value))
