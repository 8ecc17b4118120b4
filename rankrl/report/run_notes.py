"""What is odd about runs that count, and about the directory of a sweep, in words."""

from __future__ import annotations

import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankrl.report.metric_lines import metrics_problem
from rankrl.report.planned import PLAN
from rankrl.report.resolved import short, versions_note

FILES = ("run.yaml", "metrics.jsonl", "evals.parquet", "result.json")
KNOWN = {PLAN, "confirm.json", "report", "_aggregate", "slurm", "adapter"}
"""What a sweep's directory holds besides its runs; names with a dot in front are rankrl's, too."""
CLOCKS_APART_S = 300
"""Clocks of two machines may differ by this much."""
MOST_NAMED = 3
LONGEST_ERROR = 300


def run_notes(
    run: Path, result: dict[str, Any], sections: dict[str, str], damage: str, planned: dict[str, int], last: Any
) -> list[str]:
    """Problems of a run that counts.

    `sections`, `damage`: of its run.yaml (rankrl.report.resolved). `last`: the step of the last
    line of its metrics.jsonl.
    """
    return [
        *_status(run, result, planned),
        *_resolved(result, sections, damage),
        *_metrics(run, result, last),
        *_files(run),
    ]


def _status(run: Path, result: dict[str, Any], planned: dict[str, int]) -> list[str]:
    notes = []
    if result["status"] != "finished":
        counts = "missing from the statistics" if result["status"] == "failed" else "counted as negative"
        notes.append(f"{result['status']}, {counts}: {result['error'][:LONGEST_ERROR] or 'no error recorded'}")
    if planned and run.name not in planned:
        notes.append("not in plan.json; counted")
    steps, asked = result["steps"], planned.get(run.name, result["steps"])
    if steps > asked or (steps < asked and result["status"] == "finished"):
        notes.append(f"{result['status']} after {steps} steps, and {PLAN} has {asked}; counted")
    if not result["tokens_total"] and steps:
        notes.append(f"tokens_total is 0 after {steps} steps; counted")
    return notes


def _resolved(result: dict[str, Any], sections: dict[str, str], damage: str) -> list[str]:
    if damage:
        return [f"run.yaml: {damage}; whether it belongs here is not known; counted"]
    notes = []
    if "scale" not in sections:
        notes.append("run.yaml is missing or no resolved run: whether it belongs here is not known; counted")
    elif "data_revision" not in sections or "versions" not in sections:
        notes.append("run.yaml records no data or grader: whether they are those of the others is not known; counted")
    said = {key: sections[key].strip().strip("'") for key in ("rank", "batch_size", "seed") if key in sections}
    wrong = [f"{key}={text[:20]}" for key, text in said.items() if text != str(result[key])]
    if wrong:
        notes.append(f"run.yaml says {', '.join(wrong)}; counted as its result says")
    return notes


def _metrics(run: Path, result: dict[str, Any], last: Any) -> list[str]:
    if result["status"] != "finished":
        return []
    if last != result["steps"]:
        end = "none" if last is None else short(last)
        return [f"metrics.jsonl ends at step {end} of {result['steps']}: its curves are incomplete"]
    wrong = metrics_problem(run / "metrics.jsonl", result["steps"])
    return [f"metrics.jsonl: {wrong}; its curves show what can be read"] if wrong else []


def _files(run: Path) -> list[str]:
    """Notes on files that are links, or of a time that has not come yet."""
    notes = ["a link to another directory; counted"] if run.is_symlink() else []
    for name in FILES:
        try:
            found = (run / name).lstat()
        except OSError:  # missing or not readable: what reads it says so
            continue
        if stat.S_ISLNK(found.st_mode):
            notes.append(f"{name} is a link")
        elif found.st_mtime > time.time() + CLOCKS_APART_S:
            day = time.strftime("%Y-%m-%d", time.gmtime(min(found.st_mtime, 2**37)))
            notes.append(f"{name} is of the future ({day}): a clock is wrong; counted")
    return notes


def sweep_notes(results: list[dict[str, Any]], resolved: list[dict[str, str]]) -> list[str]:
    """Problems of the runs of a sweep together."""
    said = []
    bases = {r["run_id"]: r["base_score"] for r in results if r["base_score"] is not None}
    if bases and max(bases.values()) - min(bases.values()) > 1e-9:
        usual = Counter(bases.values()).most_common(1)[0][0]
        said.append(
            f"base scores from {min(bases.values()):.4f} to {max(bases.values()):.4f}: gains are over different "
            f"measurements of the base ({_some(name for name, base in bases.items() if base != usual)})"
        )
    if note := versions_note(resolved):
        said.append(f"made by different versions: {note}")
    for alike in _look_alike({result["arm"] for result in results}):
        said.append(f"arms {' and '.join(map(repr, alike))} differ in case or notation alone: two arms")
    return said


def _look_alike(arms: Iterable[str]) -> list[list[str]]:
    """Names that a reader, or a file system that ignores case, takes for one."""
    found: dict[str, list[str]] = {}
    for arm in sorted(arms):
        found.setdefault(unicodedata.normalize("NFKC", arm).casefold(), []).append(arm)
    return [names for names in found.values() if len(names) > 1]


def strays(directory: Path, runs: Iterable[str]) -> list[str]:
    """A note on what lies in a sweep's directory and belongs to no run."""
    ours = KNOWN | set(runs)
    found = sorted(path.name for path in directory.iterdir() if path.name not in ours and path.name[0] != ".")
    return [f"{_entries(len(found))} to no run: {_some(map(short, found))}"] if found else []


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = [f"and {len(every) - MOST_NAMED} more"] if len(every) > MOST_NAMED else []
    return ", ".join([*every[:MOST_NAMED], *more])


def _entries(n: int) -> str:
    return "1 entry here belongs" if n == 1 else f"{n} entries here belong"
