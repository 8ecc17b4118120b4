"""The file that caches measured first steps. Read without the training stack, by `explain` too."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from rankrl.data.base_model import local_directory
from rankrl.data.items import Item, revision
from rankrl.data.loading import load_items
from rankrl.recipe.first_step import FirstSteps, read_first_steps
from rankrl.recipe.plan import Run
from rankrl.sweep.base_score import cache_key

VERSION = 1
"""Version of the measurement. Raise it if the same inputs give another result."""


def measured_ranks(run: Run) -> list[int]:
    """The ranks of the recipe and the reference rank, the smallest first."""
    return sorted({*run.recipe.ranks, run.recipe.rules.lr.at_rank})


def reference_rate(run: Run) -> tuple[float, int]:
    """(learning rate, rank) of the reference point."""
    rule = run.recipe.rules.lr
    return (run.scale.reference.lr if rule.value is None else rule.value), rule.at_rank


def cache_path(run: Run, items: tuple[list[Item], list[Item]], model_path: str, directory: Path) -> Path:
    """The file under `directory`, named after everything that the first steps depend on.

    That is the base and how it is sampled, the items, ranks, reference point, allocation, init,
    what is trained, and the rules of alpha and of the ratio of rates.
    """
    recipe, scale = run.recipe, run.scale
    parts = [
        VERSION,
        cache_key(scale, model_path, revision(items[0])),
        revision(items[1]),
        scale.sampling.temperature,
        scale.model.modules,
        measured_ranks(run),
        reference_rate(run),
        scale.reference.alpha,
        [asdict(part) for part in (recipe.init, recipe.allocation)],
        [asdict(rule) for rule in (recipe.rules.alpha, recipe.rules.lr_ratio)],
        *([recipe.trained] if recipe.trained != "both" else []),
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return directory / run.sweep / "adapter" / f"first_step-{key}.json"


def cached(run: Run, directory: Path) -> FirstSteps | None:
    """What has been measured for `run` under `directory` already, if anything. It starts nothing.

    Where no first step was measured, the base is not looked for: it might have to be downloaded.
    """
    if not any((directory / run.sweep / "adapter").glob("first_step-*.json")):
        return None
    model_path, items = str(local_directory(run.scale.model)), load_items(run.scale.data)
    return read_first_steps(cache_path(run, items, model_path, directory))
