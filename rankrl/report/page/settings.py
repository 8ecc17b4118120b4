"""Settings of the runs: those derived from the rank, those that differ by arm, and shared ones."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from rankrl.recipe.history import SECTIONS
from rankrl.report.regular_file import content
from rankrl.report.resolved import LARGEST_FILE_BYTES, resolved_sections, section

MOST_LEAVES, DEEPEST = 2000, 16
"""Largest number of settings and of levels read from a run.yaml, which may come from anywhere.

Aliases can make a huge tree of a small file."""
LONGEST_TEXT, LARGEST = 200, 1e15
PER_RUN = ("format", "run_id", "arm", "rank", "batch_size", "seed", "trainable_params", "derived")
SHORT = reprlib.Repr()
SHORT.maxlist, SHORT.maxlevel = 20, 4


class NoMergeLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses merge keys: merges of merges would take it for ever.

    It is the loader in Python, since the one in C crashes the process on deeply nested files.
    """

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("a merge key")


def resolved(run: Path) -> dict[str, Any]:
    """A run.yaml, read by a safe loader, with defaults for the keys that it lacks.

    {} where it is missing or damaged: the report names such runs elsewhere.
    """
    path = run / "run.yaml"
    try:
        tree = yaml.load(content(path, LARGEST_FILE_BYTES).decode(), Loader=NoMergeLoader)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    texts = {name: part for name, part in resolved_sections(path).items() if name in SECTIONS}
    return tree | {name: section(name, part).tree for name, part in texts.items()} if isinstance(tree, dict) else {}


def flat(tree: dict[str, Any]) -> dict[str, str]:
    """A tree with dotted keys: {"a": {"b": 1}} -> {"a.b": "1"}. Long and deep values are cut."""
    return dict(islice(_leaves(tree, "", 0), MOST_LEAVES))


def _leaves(tree: dict[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and depth < DEEPEST:
            yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", _short(value)


def _short(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits
        return "?"
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."


def settings(directory: Path, results: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """(arm, rank) -> content of run.yaml, from the first run of each that has a readable one."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        place = (result["arm"], result["rank"])
        if place not in found and (tree := resolved(directory / result["run_id"])):
            found[place] = tree
    return found


def derived(found: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm and rank with the value of each derived hyperparameter."""
    rows = []
    for (arm, rank), tree in found.items():
        knobs = tree.get("derived")
        values = {k: v.get("value") for k, v in knobs.items() if isinstance(v, dict)} if isinstance(knobs, dict) else {}
        rows.append(
            {"arm": arm, "rank": rank}
            | {k: v for k, v in values.items() if isinstance(v, int | float) and abs(v) < LARGEST}
        )
    return rows


def split(found: dict[tuple[str, int], dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(settings that differ by arm, settings that all arms share), one row per setting.

    A row has a column per arm in the first list, and the column `value` in the second.
    """
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
