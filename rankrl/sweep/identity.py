"""A run directory belongs to one resolved run; another under its id is not mixed in or skipped."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from rankrl.recipe.history import ADDED, FORMAT, SECTIONS, first_difference
from rankrl.recipe.plan import Run
from rankrl.report.resolved import newer, resolved_sections, section, short


def check_identity(directory: Path, run: Run) -> None:
    """Raises ValueError with the first difference if the run.yaml in `directory` is another run's.

    A key that it lacks is what the version that added it has by default (rankrl.recipe.history).
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
        raise ValueError(f"--runs: {directory} holds a run {apart(*found)}; choose another --runs directory or name=")


def _compared(resolved: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this one: of a derived knob its value, not the words that explain it.

    One that the other run lacks derives from a rule, which is compared.
    """
    derived, others = (tree["derived"] if isinstance(tree["derived"], dict) else {} for tree in (resolved, other))
    values = {name: {"value": knob.get("value")} if isinstance(knob, dict) else knob for name, knob in derived.items()}
    return {**resolved, "format": FORMAT, "derived": {name: values[name] for name in values if name in others}}


def apart(key: str, was: Any, now: Any) -> str:
    """A difference from a recorded run, in words."""
    held = f"without {key}" if was is MISSING else f"with {key}={short(was)}"
    return f"{held}, and this one has {'none' if now is MISSING else short(now)}"
