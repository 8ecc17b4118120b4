"""Run directories -> records. Reads result.json and metrics.jsonl only; unreadable ones are named, not dropped in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SweepRecords:
    name: str
    directory: Path
    results: list[dict[str, Any]]
    unreadable: list[str]
    unfinished: list[str]


def find_sweeps(directory: Path) -> list[SweepRecords]:
    """Records of the sweep in `directory`, or of each sweep below it. Raises ValueError if there is none."""
    if not directory.is_dir():
        raise ValueError(f"DIR: got {str(directory)!r}, allowed: an existing runs directory")
    here = sorted(path.parent for path in directory.glob("*/run.yaml"))
    sweeps = [directory] if here else sorted({path.parent.parent for path in directory.glob("*/*/run.yaml")})
    records = [read_sweep(path) for path in sweeps]
    if not any(record.results for record in records):
        raise ValueError(
            f"DIR: got {str(directory)!r}, allowed: a directory with at least one finished run (result.json)"
        )
    return [record for record in records if record.results]


def read_sweep(directory: Path) -> SweepRecords:
    results, unreadable, unfinished = [], [], []
    for run in sorted(path.parent for path in directory.glob("*/run.yaml")):
        path = run / "result.json"
        if not path.exists():
            unfinished.append(run.name)
            continue
        try:
            results.append(json.loads(path.read_text()))
        except json.JSONDecodeError:
            unreadable.append(run.name)
    results.sort(key=lambda r: (r["arm"], r["rank"], r["batch_size"], r["seed"]))
    return SweepRecords(directory.name, directory, results, unreadable, unfinished)


def curves(directory: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, up to the first that is broken."""
    lines = []
    path = directory / "metrics.jsonl"
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
