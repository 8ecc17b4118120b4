"""The ledger: the state of every run of a sweep, from its directory and, if there, from Slurm."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankrl.recipe.plan import Run
from rankrl.recipe.whole_file import whole_file
from rankrl.report.metric_lines import number
from rankrl.report.planned import PLAN, read_plan
from rankrl.report.read import last_line, read_result, refused
from rankrl.report.regular_file import content, missing

TASKS = "slurm"
STALE_S = 60
"""A process on another node counts as dead if it has not touched its lock for this long."""
ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Entry:
    """The state of one planned run."""

    run_id: str
    state: str
    """One of planned, queued, running, stopped, failed, diverged, finished."""
    step: int
    steps: int
    attempts: int
    eta_s: float | None
    """Estimated seconds to the end of a running run."""
    note: str
    """Where the run is running or queued, what ended it, or how it continues."""


def write_plan(root: Path, runs: list[Run]) -> None:
    """Adds `runs` to the sweep's plan.json, so that runs without a directory are known as well."""
    known = read_plan(root)
    planned = known | {run.run_id: run.recipe.steps for run in runs}
    if planned != known:
        root.mkdir(parents=True, exist_ok=True)
        with whole_file(root / PLAN) as part:
            part.write_text(json.dumps(planned) + "\n")


def find_roots(directory: Path) -> list[Path]:
    """Directory of the sweep in `directory`, or of each sweep directly below it.

    Raises ValueError if there is none.
    """
    if not directory.is_dir():
        raise ValueError(f"DIR: got {str(directory)!r}, allowed: an existing runs directory")
    roots = [directory] if (directory / PLAN).is_file() else sorted(p.parent for p in directory.glob(f"*/{PLAN}"))
    if not roots:
        raise ValueError(f"DIR: got {str(directory)!r}, allowed: a directory with a sweep ({PLAN})")
    return roots


def ledger(root: Path, strict: bool = False) -> list[Entry]:
    """An entry for every planned run, in the order of the plan.

    If Slurm does not answer, queued runs show as planned or stopped, with a warning on stderr; if
    `strict`, ValueError is raised.
    """
    try:
        live = live_tasks() if any((root / TASKS).glob("*.tasks")) else None
    except ValueError as error:
        if strict:
            raise
        print(f"rankrl: {error}", file=sys.stderr)
        live = None
    waiting = waiting_in_slurm(root, live or set())
    return [_entry(root, run_id, steps, waiting.get(run_id), live) for run_id, steps in read_plan(root).items()]


def _entry(root: Path, run_id: str, steps: int, task: str | None, live: set[str] | None) -> Entry:
    directory = root / run_id
    attempts, result = _count_lines(attempts_file(directory)), read_result(directory)
    if result and result["status"] != "failed":
        return Entry(run_id, result["status"], result.get("steps", 0), steps, attempts, None, result.get("error", ""))
    last = last_line(directory / "metrics.jsonl")
    step = last["step"] if number(last.get("step")) else 0
    owner = living_owner(root / f".{run_id}.lock", live)
    if owner:
        where = owner["host"] + (f", job {owner['job']}" if owner["job"] else "")
        left_s = (steps - step) * last["step_s"] if number(last.get("step_s")) else None
        return Entry(run_id, "running", step, steps, attempts, left_s, where)
    if task:
        before = f"; failed before: {result.get('error', '')}" if result else ""
        return Entry(run_id, "queued", step, steps, attempts, None, f"job {task}{before}")
    if result:
        return Entry(run_id, "failed", step, steps, attempts, None, result.get("error", ""))
    wrong = refused(directory)
    if attempts or wrong:
        saved = not missing(directory / "checkpoint" / "state.pt")
        goes_on = "resumes at its checkpoint" if saved else "starts again"
        return Entry(run_id, "stopped", step, steps, attempts, None, f"{goes_on}: {wrong}" if wrong else goes_on)
    return Entry(run_id, "planned", 0, steps, 0, None, "")


def living_owner(path: Path, live: set[str] | None = None) -> dict[str, Any] | None:
    """The process that holds the lock of a run (rankrl.sweep.owner), if it seems to be alive.

    `path`: the lock file. `live`: this user's array tasks that Slurm has not ended; None if Slurm
    was not asked.
    """
    try:
        owner = json.loads(content(path))
        ours = path.stat().st_uid == os.getuid() and "_" in (owner["job"] or "")
        if live is not None and ours and owner["job"] not in live:  # a killed process has not freed its lock
            return None
        if owner["host"] != socket.gethostname():
            return owner if time.time() - path.stat().st_mtime < STALE_S else None
        # after a reboot, another process may have this number
        command = Path(f"/proc/{owner['pid']}/cmdline").read_bytes()
        return owner if b"rankrl" in command or owner["pid"] == os.getpid() else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def attempts_file(run: Path) -> Path:
    """File with one line for every time that the run was started or resumed.

    It lies beside the run directory, like the run's lock.
    """
    return run.with_name(f".{run.name}.attempts")


def _count_lines(path: Path) -> int:
    try:
        return content(path).count(b"\n")
    except OSError:
        return 0


def waiting_in_slurm(root: Path, live: set[str]) -> dict[str, str]:
    """run_id -> its queued or running Slurm task, over all arrays submitted for the sweep."""
    files = (root / TASKS).glob("*.tasks")
    tasks = {f"{file.stem}_{i}": line for file in files for i, line in enumerate(_lines(file))}
    return {run_id: task for task, line in tasks.items() if task in live for run_id in line.split(",")}


def _lines(path: Path) -> list[str]:
    try:
        return content(path).decode(errors="replace").splitlines()
    except OSError:
        return []


def live_tasks() -> set[str] | None:
    """Ids (ARRAY_INDEX) of this user's tasks that Slurm has not ended; None without Slurm.

    Raises ValueError if Slurm does not answer: queued runs would otherwise be submitted again.
    """
    if shutil.which("squeue") is None:
        return None
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("Slurm: squeue does not answer; try again when it does") from error
    if asked.returncode:
        raise ValueError(f"Slurm: squeue says {asked.stderr.strip()!r}; try again when it answers")
    return set(asked.stdout.split())


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """state -> number of runs in it."""
    found: dict[str, int] = {}
    for entry in entries:
        found[entry.state] = found.get(entry.state, 0) + 1
    return found


def rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in entries]


def shown(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The rows of `rankrl status`, for people."""
    return [
        {
            "run": entry.run_id,
            "state": entry.state,
            "step": f"{entry.step}/{entry.steps}",
            "attempts": entry.attempts,
            "left": "" if entry.eta_s is None else f"{entry.eta_s / 60:.0f} min",
            "note": entry.note[:100],
        }
        for entry in entries
    ]
