"""A sweep as a Slurm array: which runs are left, how tasks share them, what a task requests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from rankrl.data.loading import load_items
from rankrl.recipe.plan import Run, neediest
from rankrl.recipe.scale import Scale
from rankrl.report.ledger import ENDED, TASKS, ledger, write_plan
from rankrl.report.read import read_result
from rankrl.sweep.identity import check_identity
from rankrl.sweep.measure_alike import check_measure, recorded_runs
from rankrl.sweep.stages import keep_back, next_stage, staged

ARRAY_SIZE = 1001  # Slurm's default MaxArraySize


def left(runs: list[Run], root: Path) -> tuple[list[Run], str]:
    """The runs to submit, and a line that says how many runs are in which state.

    A run that a living task or process holds is not submitted again.
    """
    for run in runs:
        check_identity(root / run.run_id, run)
    write_plan(root, runs)
    states = {entry.run_id: entry.state for entry in ledger(root, strict=True)}
    busy = ("queued", "running")
    todo = [run for run in runs if states[run.run_id] not in (*ENDED, *busy)]
    if todo and (recorded := recorded_runs(root)):
        check_measure(recorded, runs[0].scale.data, load_items(runs[0].scale.data))
    numbers = {
        "finished": sum(states[run.run_id] in ENDED for run in runs),
        "queued or running": sum(states[run.run_id] in busy for run in runs),
        "to do": len(todo),
    }
    return todo, f"{len(runs)} runs: " + ", ".join(f"{number} {what}" for what, number in numbers.items() if number)


def deal(run_ids: list[str], per_task: int, most_tasks: int) -> list[list[str]]:
    """The runs of each task, at most `per_task`, or more if there would be over `most_tasks` tasks.

    Tasks have the same number of runs, give or take one, in the given order.
    """
    if not run_ids:
        return []
    tasks = min(-(-len(run_ids) // per_task), most_tasks)
    return [run_ids[i * len(run_ids) // tasks : (i + 1) * len(run_ids) // tasks] for i in range(tasks)]


def array_limit() -> int:
    """Most tasks that an array of this cluster may have."""
    try:
        config = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ARRAY_SIZE
    sizes = [line.split("=")[1].strip() for line in config.splitlines() if line.startswith("MaxArraySize")]
    return int(sizes[0]) if sizes else ARRAY_SIZE


def sbatch_options(scale: Scale, tasks: int) -> tuple[list[str], list[str]]:
    """sbatch's options for the array, and those for the report after it.

    What the scale leaves null is taken from the job in which this is called.
    """
    slurm, environment = scale.slurm, os.environ
    at_once = f"%{slurm.tasks_at_once}" if slurm.tasks_at_once else ""
    who = {
        "partition": slurm.partition or environment.get("SLURM_JOB_PARTITION"),
        "account": slurm.account or environment.get("SLURM_JOB_ACCOUNT"),
        "qos": environment.get("SLURM_JOB_QOS"),
        "reservation": environment.get("SLURM_JOB_RESERVATION"),
    }
    what = {
        "time": slurm.time or submitted_time_limit(),
        "gpus-per-node": slurm.gpus_per_node or None,
        "cpus-per-task": slurm.cpus_per_node,
    }
    array = [f"--array=0-{tasks - 1}{at_once}", f"--nodes={scale.nodes}", "--ntasks-per-node=1"]
    array.append(f"--signal=B:USR2@{slurm.stop_ahead_s}")
    if scale.nodes > 1:  # `ray symmetric-run` refuses a node with another Ray on it, and ends every Ray there
        array.append("--exclusive")
    return array + _flags(who | what) + slurm.flags, _flags(who)


def _flags(given: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in given.items() if value]


def submitted_time_limit() -> str | None:
    """The time limit of the job in which this is called; None outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    asked = subprocess.run(["squeue", "--noheader", f"--jobs={job}", "--format=%l"], capture_output=True, text=True)
    limit = asked.stdout.strip()
    return limit if limit and limit not in ("UNLIMITED", "INVALID", "NOT_SET") else None


def print_tasks(runs: list[Run], directory: Path) -> str:
    """Prints what slurm/sweep.sh reads. Returns what to tell the user.

    The lines are the directory of the sweep, sbatch's options for the array, those for the report,
    and then the run ids of each task.
    """
    root = directory / runs[0].sweep
    now, why = next_stage(runs, root)
    keep_back(runs, root)
    if not now:
        return why
    todo, told = left(now, root)
    if todo:
        (root / TASKS).mkdir(parents=True, exist_ok=True)
        dealt = deal([run.run_id for run in todo], runs[0].scale.slurm.runs_per_task, array_limit())
        options = sbatch_options(neediest(runs).served, len(dealt))
        lines = [str(root), *map(" ".join, options), *map(",".join, dealt)]
        print("\n".join(lines))
    return f"{why}; {told}" if staged(runs) else told


def outcome(root: Path, run_ids: list[str], begun: Path) -> str:
    """The outcome of a task's attempt, which began when the file `begun` was touched.

    It is `ended` if no run is left, `saved` if there is something new to continue from, else
    `nothing`. An earlier failure is tried again; a new failure is final and does not count as
    progress.
    """
    since = begun.stat().st_mtime_ns
    results = {run_id: (read_result(root / run_id) or {}).get("status") for run_id in run_ids}

    def new(path: Path) -> bool:
        return path.exists() and path.stat().st_mtime_ns > since

    def ended(run_id: str) -> bool:
        return results[run_id] in ENDED or (results[run_id] == "failed" and new(root / run_id / "result.json"))

    def saved(run_id: str) -> bool:
        directory = root / run_id
        done = results[run_id] in ENDED and new(directory / "result.json")
        return done or new(directory / "checkpoint" / "state.pt")

    return "ended" if all(map(ended, run_ids)) else "saved" if any(map(saved, run_ids)) else "nothing"
