"""Checks that a run directory belongs to the run that is about to use it.

Another run of the same id is refused: it is neither mixed in nor taken for done.
"""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any

from rankrl.recipe.history import ADDED, FORMAT, SECTIONS, first_difference
from rankrl.recipe.plan import Run
from rankrl.report.resolved import newer, resolved_sections, section, short


def check_identity(directory: Path, run: Run) -> None:
    """Raises ValueError, with the first difference, if `directory` has the run.yaml of another run.

    A key that the file lacks means the default that the key had when it was added
    (rankrl.recipe.history).
    """
    path = directory / "run.yaml"
    if not path.is_file():
        return
    sections = resolved_sections(path)
    if unreadable := newer(sections):
        raise ValueError(f"--runs: {directory}: {unreadable}")
    now = run.resolved()
    now["derived"] = {name: told for name, told in now["derived"].items() if not run.knobs[name].pending}
    was = {key: section(key, sections[key]).tree if key in sections else ADDED.get(key, MISSING) for key in now}
    if not all(isinstance(was[key], dict) for key in SECTIONS):
        raise ValueError(f"--runs: {path} is unreadable; move {directory} away and start again")
    if found := first_difference(_compared(was, now), _compared(now, was)):
        raise ValueError(f"--runs: {directory} holds a run {apart(*found)}; choose another --runs directory or name=")


def _compared(resolved: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The parts of a resolved run that are compared with the resolved run `other`.

    A derived hyperparameter is compared by its value, not by the words that explain it. If `other`
    lacks it, it is left out; the rule that it derives from is compared.
    """
    derived, others = (tree["derived"] if isinstance(tree["derived"], dict) else {} for tree in (resolved, other))
    values = {name: {"value": knob.get("value")} if isinstance(knob, dict) else knob for name, knob in derived.items()}
    return {**resolved, "format": FORMAT, "derived": {name: values[name] for name in values if name in others}}


def apart(key: str, was: Any, now: Any) -> str:
    """A difference from a recorded run, in words: the key, its value there and its value here."""
    held = f"without {key}" if was is MISSING else f"with {key}={short(was)}"
    return f"{held}, and this one has {'none' if now is MISSING else short(now)}"
