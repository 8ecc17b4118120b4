"""The name of a run: r<rank>-b<batch>-s<seed>, with <arm>- in front if the recipe has arms.

A point of the recipe's axes is an arm, such as lr_0p0005 (rankrl/recipe/axes.py).
"""

from __future__ import annotations

import re

PATTERN = re.compile(r"(?:(?P<arm>[^.].*)-)?r(?P<rank>\d+)-b(?P<batch_size>\d+)-s(?P<seed>\d+)", re.DOTALL)


def run_id(arm: str, rank: int, batch_size: int, seed: int) -> str:
    """The name of a grid point. `arm` is "" if the recipe has no arms."""
    return (f"{arm}-" if arm else "") + f"r{rank}-b{batch_size}-s{seed}"


def parse_run_id(name: str) -> tuple[str, int, int, int] | None:
    """(arm, rank, batch size, seed) of the run with this name; None if it is not a run's name."""
    found = PATTERN.fullmatch(name)
    return found and (found["arm"] or "", int(found["rank"]), int(found["batch_size"]), int(found["seed"]))
