"""What the runs were set to: what each rank derives, where arms differ, and everything that all runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES, DEEPEST = 1 << 18, 32
LONGEST_TEXT = 200
PER_RUN = ("run_id", "arm", "rank", "batch_size", "seed", "trainable_params", "derived")


def resolved(run: Path) -> dict[str, Any]:
    """A run.yaml, read by a safe loader; {} where it is missing or damaged: the report names such runs elsewhere."""
    try:
        text = (run / "run.yaml").read_text()
        if len(text) > MOST_BYTES:
            return {}
        tree = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def flat(tree: dict[str, Any], prefix: str = "", depth: int = 0) -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}. Long texts are cut."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and depth < DEEPEST:
            leaves.update(flat(value, f"{prefix}{key}.", depth + 1))
        else:
            text = str(value)
            leaves[f"{prefix}{key}"] = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."
    return leaves


def settings(directory: Path, results: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """(arm, rank) -> run.yaml of its first run that has one."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        place = (result["arm"], result["rank"])
        if place not in found and (tree := resolved(directory / result["run_id"])):
            found[place] = tree
    return found


def derived(found: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per arm and rank: each derived hyperparameter."""
    rows = []
    for (arm, rank), tree in found.items():
        knobs = tree.get("derived")
        values = {k: v.get("value") for k, v in knobs.items() if isinstance(v, dict)} if isinstance(knobs, dict) else {}
        rows.append({"arm": arm, "rank": rank} | {k: v for k, v in values.items() if isinstance(v, int | float)})
    return rows


def split(found: dict[tuple[str, int], dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Settings that differ by arm, a row each with a column per arm; and those that all arms share, with their value."""
    arms = {
        arm: flat({k: v for k, v in tree.items() if k not in PER_RUN}) for (arm, _), tree in reversed(found.items())
    }
    arms = dict(sorted(arms.items()))
    keys = dict.fromkeys(key for values in arms.values() for key in values)
    rows: list[dict[str, Any]] = [
        {"setting": key} | {arm: values.get(key) for arm, values in arms.items()} for key in keys
    ]
    differ = [row for row in rows if len({row[arm] for arm in arms}) > 1]
    same = [{"setting": row["setting"], "value": row[next(iter(arms))]} for row in rows if row not in differ]
    return differ, same
