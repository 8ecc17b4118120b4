"""A run directory belongs to one resolved run. Another one under the same id is refused, never mixed in or silently skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rankrl.recipe.plan import Run

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return leaves


def check_identity(directory: Path, run: Run) -> None:
    """Raises ValueError if the run.yaml in `directory` describes a run that differs from `run`, naming the first difference."""
    path = directory / "run.yaml"
    if not path.is_file():
        return
    try:
        was = flat(yaml.load(path.read_text(), Loader=LOADER))  # a safe loader
    except (yaml.YAMLError, AttributeError) as error:
        raise ValueError(f"--runs: {path} is unreadable; move {directory} away and start again") from error
    now = flat(yaml.load(yaml.safe_dump(run.resolved()), Loader=LOADER))
    for key, value in now.items():
        if was.get(key) != value:
            raise ValueError(
                f"--runs: {directory} holds a run with {key}={was.get(key)!r}, and this one has {value!r}; "
                "choose another --runs directory or name="
            )
