"""Reads the run directories of a sweep.

Runs that are missing, partial, damaged, foreign or failed are named: they neither stop the report
nor disappear without a word. Only a sweep that mixes runs of different recipes, scales, steps,
items or graders is refused, since its cells would not be comparable.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from rankrl.recipe.run_id import parse_run_id
from rankrl.report.axis_values import listed_values, with_axes
from rankrl.report.metric_lines import metric_line, number
from rankrl.report.nothing_right import nothing_right
from rankrl.report.planned import checked_plan
from rankrl.report.regular_file import content, missing, opened
from rankrl.report.resolved import compared_sections, difference, kind, newer, short, usual_kind
from rankrl.report.result import Result, from_content
from rankrl.report.run_notes import KNOWN, run_notes, strays, sweep_notes
from rankrl.report.valid import read_json, result_problem
from rankrl.report.visible import visible

CONFIRM = "confirm.json"
TAIL_BYTES = 8192
PARTIAL = "partial: begun, and no result.json yet"


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
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key of each axis of the recipe -> its values, the reference first."""

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
    """Records of the sweep in `directory`, or of each sweep below it that can be reported.

    The others are named on stderr. Raises ValueError if there is no sweep that can be reported.
    """
    return read_sweeps(directory)[0]


def read_sweeps(directory: Path) -> tuple[list[SweepRecords], list[str]]:
    """(records of the sweeps at or below `directory`, names of those that are refused).

    Sweeps that are refused (they mix runs that are not alike, or cannot be read) or have no score
    are named on stderr. Raises ValueError, with the reason, if no other one is left.
    """
    if not directory.is_dir():
        raise ValueError(f"DIR: got {str(directory)!r}, allowed: an existing runs directory")
    paths, refused = _sweeps(directory)
    records = []
    for path in paths:
        try:
            records.append(read_sweep(path))
        except (ValueError, OSError) as error:
            refused[path.name] = str(error)
    told = [record for record in records if any(result["base_score"] is not None for result in record.counted)]
    if not told and refused:
        raise ValueError(next(iter(refused.values())))
    if not told:
        raise ValueError(
            f"DIR: got {str(directory)!r}, allowed: a directory with a result.json at least that has a score"
            f"{_first([problem for record in records for problem in record.problems])}"
        )
    unscored = [record for record in records if record not in told]
    for name, why in ({r.name: f"no run of it has a score{_first(r.problems)}" for r in unscored} | refused).items():
        print(visible(f"rankrl: {name}: left out, {why}"), file=sys.stderr)
    return told, list(refused)


def _sweeps(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """(directories of the sweeps at or just below `directory`, name -> why it is left out)."""
    if _runs(directory):
        return [directory], {}
    found: dict[Path, Path] = {}
    refused = {}
    for path in sorted(filter(os.path.isdir, directory.iterdir()), key=lambda path: (path.is_symlink(), path)):
        try:
            runs = _runs(path)
        except OSError as error:
            refused[path.name] = f"not readable ({error.strerror or error})"
            continue
        if runs and found.setdefault(path.resolve(), path) != path:
            print(visible(f"rankrl: {path.name}: left out, a link to {path.resolve().name}"), file=sys.stderr)
    return sorted(found.values()), refused


def _first(problems: list[dict[str, str]], most: int = 3) -> str:
    """The first `most` problems of single runs as text, after a semicolon; "" if there are none."""
    named = [f"{row['run']}: {row['problem']}" for row in problems if row["run"]]
    return f"; {'; '.join(named[:most])}" if named else ""


def _runs(directory: Path) -> list[Path]:
    """Run directories of a sweep, sorted: what has a run's name, a run.yaml or a result.json.

    Raises OSError if `directory` cannot be read.
    """
    return sorted(path for path in directory.iterdir() if parse_run_id(path.name) or _has_record(path))


def _has_record(path: Path) -> bool:
    return path.name not in KNOWN and any(os.path.lexists(path / name) for name in ("run.yaml", "result.json"))


def read_sweep(directory: Path) -> SweepRecords:
    """The records of the sweep in `directory`.

    Raises ValueError if its runs are not alike, and OSError if it cannot be read.
    """
    runs = [run.name for run in _runs(directory)]
    read = {name: _read_run(directory / name, runs) for name in runs}
    planned, of_plan = checked_plan(directory)
    problems = {name: [problem] for name, (_, problem) in read.items() if problem}
    for name in planned.keys() - read.keys():
        problems[name] = ["missing: planned, and nothing of it is here"]
    results = {name: result for name, (result, _) in read.items() if result}
    resolved, damage = {}, {}
    for name in results:
        resolved[name], damage[name] = compared_sections(directory / name)
    for name, problem in _foreign(directory, results, resolved, set(planned)).items():
        del results[name]
        problems[name] = [problem]
    lasts = {name: last_line(directory / name / "metrics.jsonl") for name in results}
    for name, result in results.items():
        last = lasts[name].get("step")
        notes = run_notes(directory / name, result, resolved[name], damage[name], planned, last)
        problems[name] = [*problems.get(name, []), *notes]
    rows = sorted((_with_base(result, results) for result in results.values()), key=_grid_point)
    rows = with_axes(rows, resolved)
    unfinished = [name for name, (_, problem) in read.items() if problem == PARTIAL]
    unreadable = [name for name, (result, _) in read.items() if result is None and name not in unfinished]
    confirming, of_confirm = _confirming(directory)
    of_all = nothing_right(rows, lasts, lambda name: last_line(directory / name / "rollouts.jsonl", 4 * TAIL_BYTES))
    of_all += [*sweep_notes(rows, [resolved[name] for name in results]), *of_plan, *of_confirm]
    of_all += strays(directory, runs)
    named = [{"run": name, "problem": problem} for name in sorted(problems) for problem in problems[name]]
    return SweepRecords(
        directory.name,
        directory,
        rows,
        unreadable,
        unfinished,
        [{"run": "", "problem": problem} for problem in of_all] + named,
        len(planned) or None,
        confirming,
        listed_values(rows, planned),
    )


def _grid_point(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[key] for key in ("arm", "rank", "batch_size", "seed"))


def _confirming(directory: Path) -> tuple[list[int], list[str]]:
    """(seeds in confirm.json, which a sweep in stages writes, problems); [] if there is no file."""
    if missing(directory / CONFIRM):
        return [], []
    try:
        seeds = read_json(directory / CONFIRM)
    except ValueError as error:
        return [], [f"{CONFIRM}: {error}; no result is given apart"]
    fine = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    return (seeds, []) if fine else ([], [f"{CONFIRM}: {short(seeds)}, no seeds; no result is given apart"])


def _with_base(result: dict[str, Any], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`result` with a base score: that of the other runs if it failed before measuring the base."""
    if result["base_score"] is not None:
        return result
    return result | {"base_score": max((r["base_score"] for r in results.values() if r["base_score"]), default=None)}


def _read_run(run: Path, names: list[str]) -> tuple[dict[str, Any] | None, str]:
    """(result, "") of a run directory, or (None, problem) if it has no result that counts.

    `names`: the run directories of the sweep.
    """
    try:
        if not stat.S_ISDIR(run.stat().st_mode):
            return None, "no directory, and it has a run's name"
    except OSError as error:
        return None, f"not readable ({error.strerror or error})"
    if run.is_symlink() and run.parent.resolve().is_relative_to(run.resolve()):
        return None, "a link that leads back to the sweep"
    if missing(run / "result.json"):
        return None, PARTIAL
    result, wrong = _read(run / "result.json")
    if result is None:
        return None, wrong
    if result.run_id != run.name:
        kind = "duplicate" if result.run_id in names else "foreign"
        return None, f"{kind}: its result.json is that of {result.run_id}"
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


def last_line(path: Path, tail_bytes: int = TAIL_BYTES) -> dict[str, Any]:
    """The last complete line of a JSONL file, which is read from its end; {} if there is none."""
    try:
        with opened(path) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - tail_bytes))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return next(filter(None, map(metric_line, reversed(lines))), {})


def mean_ranks(sweep: SweepRecords) -> dict[str, dict[str, float]]:
    """Arm and rank, in words -> module -> mean rank over runs.

    Only of runs whose allocation.json has more than one rank.
    """
    tables: dict[str, list[dict[str, float]]] = {}
    for result in sweep.results:
        path = sweep.directory / result["run_id"] / "adapter" / "allocation.json"
        try:
            ranks = {row["module"]: float(row["rank"]) for row in read_json(path)["modules"]}
        except (ValueError, KeyError, TypeError, OverflowError):
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
    texts = content(path).splitlines() if path.exists() else []
    return list(takewhile(bool, map(metric_line, texts)))


def curve(directory: Path, points: int = 64, steps: int | None = None) -> list[dict[str, Any]]:
    """At most `points` evenly spaced lines of a run's metrics.jsonl, with the first and the last.

    Only these lines are parsed, since a sweep has millions. Left out are broken ones and, if the
    run's PPO `steps` are given, those of a later step.
    """
    try:
        texts = content(directory / "metrics.jsonl").split(b"\n")
    except OSError:
        return []
    last = len(texts) - 1 - (not texts[-1])
    wanted = range(last + 1) if last < points else sorted({round(i * last / (points - 1)) for i in range(points)})
    found = [line for i in wanted if (line := metric_line(texts[i])) and "step" in line]
    return found if steps is None else [line for line in found if number(line["step"]) and line["step"] <= steps]


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
    return "" if missing(path) else _read(path)[1]
