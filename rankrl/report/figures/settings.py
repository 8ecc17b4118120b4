"""Hyperparameters of a sweep's runs, read back from run.yaml."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import yaml

from rankrl.report.read import SweepRecords
from rankrl.report.valid import resolved_sections


def knobs_of(sweep: SweepRecords) -> dict[tuple[str, int], dict[str, float]]:
    """(arm, rank) -> knob -> value, from the first readable run of each: the rules know of nothing else."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for run in sweep.results:
        at = run["arm"], run["rank"]
        if at not in found and (knobs := _derived(sweep.directory / run["run_id"] / "run.yaml")):
            found[at] = knobs
    return found


def _derived(path: Path) -> dict[str, float]:
    """Section `derived` alone; the pure Python loader, since libyaml's crashes on deep nesting. Empty if damaged."""
    try:
        knobs = yaml.load(resolved_sections(path).get("derived", "{}"), Loader=yaml.SafeLoader)
        values = {name: float(knob["value"]) for name, knob in knobs.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        return {}
    return {name: value for name, value in values.items() if isfinite(value)}
