"""A run directory belongs to one resolved run. Another one under the same id is refused, never mixed in or silently skipped."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from rankrl.recipe.history import ADDED, FORMAT, SECTIONS, first_difference
from rankrl.recipe.plan import Run
from rankrl.report.resolved import newer, resolved_sections, section, short


def check_identity(directory: Path, run: Run) -> None:
    """Raises ValueError if the run.yaml in `directory` describes a run that differs from `run`, naming the first difference.

    What a record of before a key was added leaves out is what the key means by default (rankrl.recipe.history).
    """
    path = directory / "run.yaml"
    if not path.is_file():
        return
    sections = resolved_sections(path)
    if unreadable := newer(sections):
        raise ValueError(f"--runs: {directory}: {unreadable}")
    now = run.resolved()
    was = {key: section(key, sections[key]).tree if key in sections else ADDED.get(key, MISSING) for key in now}
    if not all(isinstance(was[key], dict) for key in SECTIONS):
        raise ValueError(f"--runs: {path} is unreadable; move {directory} away and start again")
    if found := first_difference(_compared(was, now), _compared(now, was)):
        raise ValueError(f"--runs: {directory} holds a run {_apart(*found)}; choose another --runs directory or name=")


def _compared(resolved: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this one. Of derived knobs that is the value, not its explanation; one that the other lacks derives from
    rules, which are compared.
    """
    derived, others = (tree["derived"] if isinstance(tree["derived"], dict) else {} for tree in (resolved, other))
    values = {name: {"value": knob.get("value")} if isinstance(knob, dict) else knob for name, knob in derived.items()}
    return {**resolved, "format": FORMAT, "derived": {name: values[name] for name in values if name in others}}


def _apart(key: str, was: Any, now: Any) -> str:
    held = f"without {key}" if was is MISSING else f"with {key}={short(was)}"
    return f"{held}, and this one has {'none' if now is MISSING else short(now)}"
