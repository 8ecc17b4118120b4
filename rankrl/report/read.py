"""Reads the run directories of a sweep.

Runs that are missing, partial, damaged, foreign or failed are named: they neither stop the report
nor disappear without a word. Only a sweep that mixes runs of different recipes, scales, steps,
items or graders is refused, since its cells would not be comparable.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankrl.recipe.run_id import parse_run_id
from rankrl.report.resolved import compared_sections, difference, kind, newer, usual_kind, versions_note
from rankrl.report.result import Result, from_content
from rankrl.report.valid import read_json, result_problem

PLAN, CONFIRM = "plan.json", "confirm.json"
TAIL_BYTES = 8192


@dataclass(frozen=True)
class SweepRecords:
    """A sweep as read from disk: the results that count and the problems of the other runs."""

    name: str
    directory: Path
    results: list[dict[str, Any]]
    unreadable: list[str]
    unfinished: list[str]
    problems: list[dict[str, str]] = field(default_factory=list)
    """[{run, problem}]; run "" stands for the whole sweep."""
    n_planned: int | None = None
    """Number of runs in plan.json; None if there is no plan."""
    confirming: list[int] = field(default_factory=list)
    """Seeds held back for confirmation, on which no choice depended (recipe section `stages`)."""

    @property
    def counted(self) -> list[dict[str, Any]]:
        """Results that statistics count.

        A run that failed (a lost node, no memory) is missing data: it says nothing of its rank. One
        that diverged is an outcome.
        """
        return [result for result in self.results if result["status"] != "failed"]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Results of runs that failed."""
        return [result for result in self.results if result["status"] == "failed"]


def find_sweeps(directory: Path) -> list[SweepRecords]:
    """Records of the sweep in `directory`, or of each sweep below it that has measured a score.

    Sweeps without a score are named on stderr. Raises ValueError if no sweep has one, or if a sweep
    mixes runs that are not alike.
    """
    if not directory.is_dir():
        raise ValueError(f"DIR: got {str(directory)!r}, allowed: an existing runs directory")
    sweeps = [directory] if _runs(directory) else sorted(p for p in directory.iterdir() if p.is_dir() and _runs(p))
    records = [read_sweep(path) for path in sweeps]
    told = [record for record in records if any(result["base_score"] is not None for result in record.counted)]
    if not told:
        raise ValueError(
            f"DIR: got {str(directory)!r}, allowed: a directory with a result.json at least that has a score"
            f"{_first([problem for record in records for problem in record.problems])}"
        )
    names = {record.name for record in told}
    for record in records:
        if record.name not in names:
            why = _first(record.problems)
            print(f"rankrl: {record.name}: left out, no run of it has a score{why}", file=sys.stderr)
    return told


def _first(problems: list[dict[str, str]], most: int = 3) -> str:
    """The first `most` problems of single runs as text, after a semicolon; "" if there are none."""
    named = [f"{row['run']}: {row['problem']}" for row in problems if row["run"]]
    return f"; {'; '.join(named[:most])}" if named else ""


def _runs(directory: Path) -> list[Path]:
    """Run directories of a sweep, sorted. They have a run.yaml, a result.json or a run's name."""
    told = {path.parent for name in ("run.yaml", "result.json") for path in directory.glob(f"*/{name}")}
    return sorted(told | {path for path in directory.glob("*r*-b*-s*") if parse_run_id(path.name) and path.is_dir()})


def read_sweep(directory: Path) -> SweepRecords:
    """The records of the sweep in `directory`. Raises ValueError if its runs are not alike."""
    read = {run.name: _read_run(run) for run in _runs(directory)}
    planned = read_plan(directory)
    problems = {name: [problem] for name, (_, problem) in read.items() if problem}
    for name in planned.keys() - read.keys():
        problems[name] = ["missing: planned, and nothing of it is here"]
    results = {name: result for name, (result, _) in read.items() if result}
    resolved = {name: compared_sections(directory / name) for name in results}
    for name, problem in _foreign(directory, results, resolved, set(planned)).items():
        del results[name]
        problems[name] = [problem]
    for name, result in results.items():
        problems[name] = [*problems.get(name, []), *_notes(directory / name, result, resolved[name], planned)]
    rows = [_with_base(result, results) for result in results.values()]
    rows.sort(key=lambda r: (r["arm"], r["rank"], r["batch_size"], r["seed"]))
    unfinished = [name for name in read if not (directory / name / "result.json").exists()]
    unreadable = [name for name, (result, _) in read.items() if result is None and name not in unfinished]
    named = [{"run": name, "problem": problem} for name in sorted(problems) for problem in problems[name]]
    return SweepRecords(
        directory.name,
        directory,
        rows,
        unreadable,
        unfinished,
        _of_all(rows, [resolved[name] for name in results]) + named,
        len(planned) or None,
        _confirming(directory),
    )


def _confirming(directory: Path) -> list[int]:
    """The seeds in confirm.json, which a sweep in stages writes; [] if there is no such file."""
    try:
        seeds = read_json(directory / CONFIRM)
    except ValueError:
        return []
    return [seed for seed in seeds if type(seed) is int] if isinstance(seeds, list) else []


def _with_base(result: dict[str, Any], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`result` with a base score: that of the other runs if it failed before measuring the base."""
    if result["base_score"] is not None:
        return result
    return result | {"base_score": max((r["base_score"] for r in results.values() if r["base_score"]), default=None)}


def _read_run(run: Path) -> tuple[dict[str, Any] | None, str]:
    """(result, "") of a run directory, or (None, problem) if it has no result that counts."""
    path = run / "result.json"
    if not path.exists():
        return None, "partial: begun, and no result.json yet"
    result, wrong = _read(path)
    if result is None:
        return None, wrong
    if result.run_id != run.name:
        copied = (run.parent / result.run_id / "result.json").exists()
        return None, f"{'duplicate' if copied else 'foreign'}: its result.json is that of {result.run_id}"
    return result.row(), ""


def _read(path: Path) -> tuple[Result | None, str]:
    """(content, "") of a result.json, or (None, problem) if the report refuses it."""
    try:
        content = read_json(path)
    except ValueError as error:
        return None, f"result.json: {error}"
    wrong = result_problem(content)
    return (None, f"result.json: {wrong}") if wrong else (from_content(content), "")


def _foreign(
    directory: Path, results: dict[str, dict[str, Any]], resolved: dict[str, dict[str, str]], planned: set[str]
) -> dict[str, str]:
    """Run id -> problem of runs that are not in the plan and belong to another sweep.

    Raises ValueError if runs of the plan differ from each other.
    """
    kinds = {name: kind(resolved[name], result) for name, result in results.items()}
    ours = [found for name, found in kinds.items() if name in planned] or list(kinds.values())
    usual = usual_kind(ours)
    foreign = {}
    for name, found in kinds.items():
        unreadable = newer(resolved[name])
        differs = unreadable or difference(found, usual)
        if differs and (name in planned or not planned):
            if unreadable:
                raise ValueError(f"DIR: {directory / name}: {unreadable}")
            raise ValueError(
                f"DIR: {directory} mixes runs that are not alike, allowed: runs of one recipe at one scale "
                f"({name}: {differs}; move one kind to a directory of its own)"
            )
        if differs:
            foreign[name] = f"foreign: not in the plan, and {differs}; left out"
    return foreign


def _notes(run: Path, result: dict[str, Any], sections: dict[str, str], planned: dict[str, int]) -> list[str]:
    """Problems of a run that counts."""
    notes = []
    if result["status"] != "finished":
        counts = "missing from the statistics" if result["status"] == "failed" else "counted as negative"
        notes.append(f"{result['status']}, {counts}: {result['error'] or 'no error recorded'}")
    if planned and run.name not in planned:
        notes.append("not in plan.json; counted")
    if "scale" not in sections:
        notes.append("run.yaml is missing or no resolved run: whether it belongs here is not known; counted")
    elif "data_revision" not in sections or "versions" not in sections:
        notes.append("run.yaml records no data or grader: whether they are those of the others is not known; counted")
    said = {key: sections[key].strip().strip("'") for key in ("rank", "batch_size", "seed") if key in sections}
    wrong = [f"{key}={text[:20]}" for key, text in said.items() if text != str(result[key])]
    if wrong:
        notes.append(f"run.yaml says {', '.join(wrong)}; counted as its result says")
    last = last_line(run / "metrics.jsonl").get("step")
    if last != result["steps"] and result["status"] == "finished":
        notes.append(f"metrics.jsonl ends at step {last or 'none'} of {result['steps']}: its curves are incomplete")
    return notes


def _of_all(results: list[dict[str, Any]], resolved: list[dict[str, str]]) -> list[dict[str, str]]:
    """Problems of the whole sweep, as {run: "", problem}."""
    said = []
    bases = [result["base_score"] for result in results if result["base_score"] is not None]
    if bases and max(bases) - min(bases) > 1e-9:
        said.append(
            f"base scores from {min(bases):.4f} to {max(bases):.4f}: gains are over different measurements of the base"
        )
    if note := versions_note(resolved):
        said.append(f"made by different versions: {note}")
    return [{"run": "", "problem": problem} for problem in said]


def read_plan(root: Path) -> dict[str, int]:
    """Run id -> planned PPO steps, from plan.json; {} if there is no readable plan."""
    try:
        plan = json.loads((root / PLAN).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    fine = isinstance(plan, dict) and all(type(steps) is int for steps in plan.values())
    return plan if fine else {}


def last_line(path: Path) -> dict[str, Any]:
    """The last complete line of a JSONL file, which is read from its end; {} if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return next(filter(None, map(_line, reversed(lines))), {})


def _line(text: bytes) -> dict[str, Any]:
    """A line of JSONL as a dict; {} if it is not a JSON object."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def mean_ranks(sweep: SweepRecords) -> dict[str, dict[str, float]]:
    """Arm and rank, in words -> module -> mean rank over runs.

    Only of runs whose allocation.json has more than one rank.
    """
    tables: dict[str, list[dict[str, float]]] = {}
    for result in sweep.results:
        path = sweep.directory / result["run_id"] / "adapter" / "allocation.json"
        try:
            ranks = {row["module"]: float(row["rank"]) for row in json.loads(path.read_text())["modules"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if len(set(ranks.values())) > 1:
            arm = f"{result['arm']}, " if result["arm"] else ""
            tables.setdefault(f"{arm}rank {result['rank']}", []).append(ranks)
    return {
        name: {module: sum(ranks.get(module, 0.0) for ranks in runs) / len(runs) for module in runs[0]}
        for name, runs in tables.items()
    }


def curves(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl before the first broken one."""
    return json_lines(directory / "metrics.jsonl")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file before the first broken one; none if there is no such file."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        if not (line := _line(text)):
            break
        lines.append(line)
    return lines


def curve(directory: Path, points: int = 64) -> list[dict[str, Any]]:
    """At most `points` evenly spaced lines of a run's metrics.jsonl, with the first and the last.

    Only these lines are parsed, since a sweep has millions. Broken ones are left out.
    """
    try:
        texts = (directory / "metrics.jsonl").read_bytes().split(b"\n")
    except OSError:
        return []
    last = len(texts) - 1 - (not texts[-1])
    wanted = range(last + 1) if last < points else sorted({round(i * last / (points - 1)) for i in range(points)})
    return [line for i in wanted if (line := _line(texts[i])) and "step" in line]


def read_result(directory: Path) -> dict[str, Any] | None:
    """The result.json of a run directory; None if there is none or the report refuses it.

    The sweep trains such a run again.
    """
    result, _ = _read(directory / "result.json")
    return result.row() if result else None


def finite_steps(run: Path) -> int | None:
    """PPO steps that the adapter of a diverged run is from; None for other runs or without one."""
    result = read_result(run)
    try:
        steps = read_json(run / "adapter" / "diagnostics.json")["steps"]
    except (ValueError, TypeError, KeyError):
        return None
    return steps if result and result["status"] == "diverged" and type(steps) is int else None


def divergence(run: Path) -> str:
    """What the adapter of a diverged run is, in words; "" for other runs."""
    steps = finite_steps(run)
    if steps is None:
        return ""
    return f"{run.name} diverged; its adapter is that after step {steps}, before the divergence"


def refused(directory: Path) -> str:
    """Why the report refuses a run directory's result.json; "" if it does not or there is none."""
    path = directory / "result.json"
    return _read(path)[1] if path.exists() else ""
