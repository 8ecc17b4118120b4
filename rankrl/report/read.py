"""Run directories -> records. Reads result.json and metrics.jsonl only; unreadable ones are named, not dropped in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT_KEYS = (
    "run_id", "arm", "rank", "batch_size", "seed", "status", "base_score", "final_score", "best_score", "gain", "tokens_total",
    "steps", "wall_s", "trainable_params", "base_params",
)  # fmt: skip


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
    sweeps = [directory] if _runs(directory) else sorted(p for p in directory.iterdir() if p.is_dir() and _runs(p))
    records = [read_sweep(path) for path in sweeps]
    if not any(record.results for record in records):
        raise ValueError(
            f"DIR: got {str(directory)!r}, allowed: a directory with at least one finished run (result.json)"
        )
    return [record for record in records if record.results]


def _runs(directory: Path) -> list[Path]:
    """Run directories: those with a resolved run or a result."""
    return sorted({path.parent for name in ("run.yaml", "result.json") for path in directory.glob(f"*/{name}")})


def read_sweep(directory: Path) -> SweepRecords:
    results, unreadable, unfinished = [], [], []
    for run in _runs(directory):
        path = run / "result.json"
        if not path.exists():
            unfinished.append(run.name)
            continue
        try:
            result = json.loads(path.read_text())
            results.append({key: result[key] for key in RESULT_KEYS} | {"error": result.get("error", "")})
        except (json.JSONDecodeError, KeyError, TypeError):
            unreadable.append(run.name)
    results.sort(key=lambda r: (r["arm"], r["rank"], r["batch_size"], r["seed"]))
    return SweepRecords(directory.name, directory, results, unreadable, unfinished)


def mean_ranks(sweep: SweepRecords) -> dict[str, dict[str, float]]:
    """Arm and rank, in words -> module -> mean rank over runs, where an allocation.json has more than one rank."""
    tables: dict[str, list[dict[str, float]]] = {}
    for result in sweep.results:
        path = sweep.directory / result["run_id"] / "adapter" / "allocation.json"
        try:
            ranks = {row["module"]: float(row["rank"]) for row in json.loads(path.read_text())["modules"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if len(set(ranks.values())) > 1:
            arm = f"{result['arm']}, " if result["arm"] else ""
            tables.setdefault(f"{arm}rank {result['rank']}", []).append(ranks)
    return {
        name: {module: sum(ranks.get(module, 0.0) for ranks in runs) / len(runs) for module in runs[0]}
        for name, runs in tables.items()
    }


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


def read_result(directory: Path) -> dict[str, Any] | None:
    """result.json of a run directory; None if there is none or it is unreadable."""
    try:
        return json.loads((directory / "result.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
