"""`python study/arms.py RECIPE ARM ...` prints the recipe with these arms alone."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from rankrl.recipe.load import read_yaml


def with_arms(path: str, arms: list[str]) -> str:
    """The recipe file at `path` with `arms` alone, as YAML.

    Raises ValueError for an unknown arm.
    """
    recipe = read_yaml(Path(path), "recipe")
    unknown = sorted(set(arms) - set(recipe["arms"]))
    if unknown:
        raise ValueError(f"ARM: got {', '.join(unknown)}, allowed: {', '.join(recipe['arms'])}")
    return yaml.safe_dump({**recipe, "arms": {arm: recipe["arms"][arm] for arm in arms}}, sort_keys=False)


if __name__ == "__main__":
    print(with_arms(sys.argv[1], sys.argv[2:]), end="")
