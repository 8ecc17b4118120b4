"""What speaks for the settings of a recipe that no rule of rank gives; rules have their own.

Gains are of rank 1 and rank 32, at nano, over a base score of 0.269; "against the default" they are
differences at rank 1, at nano and at nano-hard (docs/study, part B). Every text begins with
measured here, derived or conjecture.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from rankrl.recipe.schema import Recipe

NONE_APART = "no estimator is shown to be better (3 seeds)"
EVIDENCE: dict[str, dict[Any, str]] = {
    "advantage.method": {
        "gae": f"measured here: +.278, +.290; {NONE_APART}",
        "group_mean": f"measured here: +.286, +.322; {NONE_APART}",
        "rloo": f"measured here: +.279, +.323; {NONE_APART}",
        "group_norm": f"measured here: +.279, +.330; {NONE_APART}",
        "batch_mean": f"measured here: +.284, +.304; {NONE_APART}",
        "shrinkage": f"measured here: +.283, +.289; {NONE_APART}",
        "history": "derived: unbiased; measured here: -.015, +.013 against gae (2 and 8 seeds); not shown to help",
    },
    "init.method": {
        "kaiming": "measured here: no other start is shown to beat it (2 to 8 seeds)",
        "rlmo": "measured here: +.309, +.326 (36 seeds); against the default +.011 (8 seeds), not shown to help",
        "olora_tail": "measured here: -.094, -.078 against the default (2 seeds), the first shown to lose",
        "orthonormal": "measured here: -.015, -.001 against the default (2 seeds); not shown to help",
        "etf": "measured here: +.006, -.001 against the default (4 and 8 seeds); not shown to help",
        "rlpo": "measured here: -.015, -.009 against the default (2 seeds); not shown to help",
        "eva": "measured here: -.073, -.020 against the default (2 seeds); not shown to help",
        "pg_subspace": "measured here: -.019, -.003 against the default (2 and 8 seeds); not shown to help",
        "pissa": "measured here: -.122, -.078 against the default (2 seeds), the second shown to lose",
        "olora": "measured here: -.549, -.450 against the default (2 seeds), both shown to lose",
    },
    "allocation.method": {
        "uniform": "measured here: all modules +.308 at rank 1, an eighth of it in o_proj alone +.168 (2 seeds)",
        "profile": "measured here: at rank 1 a slope of .5 over the layers leaves it uniform (2 seeds)",
        "greedy": "measured here: -.012, -.001 against the default (2 seeds); not shown to help",
        "proportional": "measured here: -.017, +.006 against the default (2 seeds); not shown to help",
    },
    "trained": {
        "both": "measured here: a frozen A costs rank 1 .05 or more at every rate tried (2 seeds)",
        "b": "measured here: +.219, +.284 at the best of three rates, the default +.296, +.301 (2 seeds)",
    },
    "optimizer.method": {
        "adamw": "measured here: spectral does not beat it (2 seeds)",
        "spectral": "measured here: +.255, +.278 at the best rate of each rank, adamw +.296, +.301 (2 seeds)",
    },
    "lr_shape": {
        "constant": "measured here: neither linear nor cosine is shown to help (6 seeds)",
        "linear": "measured here: +.289, +.317, constant +.282, +.303 (6 seeds); not shown to help",
        "cosine": "measured here: to a quarter +.007, -.010 against the default (8 and 2 seeds); not shown to help",
    },
    "trust_region.on": {
        False: "measured here: at the right rate it adds nothing at rank 1 (6 seeds)",
        True: "measured here: from a rate 4 times too large +.279, +.296, without it +.081, +.072 (6 and 3 seeds)",
    },
    "kl_anchor.reference": {
        "base": "measured here: no other anchor is shown to help (2 seeds)",
        "ema": "measured here: -.009, +.017 against the base (2 seeds); not shown to help",
    },
    "kl_anchor.place": {
        "reward": "measured here: the loss is not shown to help (2 seeds)",
        "loss": "measured here: k2 +.284 and k3 +.278 at rank 1, the reward +.286 (2 seeds); not shown to help",
    },
    "average.method": {
        None: "measured here: no average is shown to help (2 to 4 seeds)",
        "mean": "measured here: +.009, -.003 against the last adapter (4 and 2 seeds); not shown to help",
        "trajectory": "measured here: +.254 at rank 1, the last adapter +.286 (2 seeds); not shown to help",
    },
    "brakes.on": {
        False: "measured here: brakes are not shown to help (2 seeds)",
        True: "measured here: at a good rate the runs are those without, bit for bit (4 seeds)",
    },
}
"""Dotted key -> its value -> the evidence. Keys that end in `on` are properties of a section."""


def settings(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(key, value, evidence) of each of these settings, as a recipe has it."""
    found = [(key, reduce(getattr, key.split("."), recipe)) for key in EVIDENCE]
    return [(key.removesuffix(".on"), _text(value), EVIDENCE[key][value]) for key, value in found]


def _text(value: Any) -> str:
    return {True: "on", False: "off", None: "off"}.get(value, str(value))
