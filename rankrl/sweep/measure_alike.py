"""The runs of a sweep are measured alike: on the same items, by the same grader."""

from __future__ import annotations

from pathlib import Path

from rankrl.data.items import Item, revision
from rankrl.recipe.history import first_difference, plain
from rankrl.recipe.scale import Data
from rankrl.report.planned import read_plan
from rankrl.report.resolved import OTHERS, data_revision, newer, resolved_sections, section, versions
from rankrl.reward.grade import GRADER
from rankrl.sweep.identity import apart

ELSEWHERE = "choose another --runs directory or name="


def recorded_runs(root: Path) -> dict[str, dict[str, str]]:
    """Run id -> the compared sections of its run.yaml, of all recorded runs of a sweep.

    A directory is a run's if it is planned or its run.yaml says so: beside them may lie a copy.
    """
    planned = read_plan(root)
    found = {path.parent.name: resolved_sections(path) for path in sorted(root.glob("*/run.yaml"))}
    ours = {name: told for name, told in found.items() if name in planned or told.get("run_id", "").strip() == name}
    return {name: {key: text for key, text in told.items() if key not in OTHERS} for name, told in ours.items()}


def check_measure(runs: dict[str, dict[str, str]], data: Data, items: tuple[list[Item], list[Item]]) -> None:
    """Raises ValueError, in one line, if a recorded run had other items or another grader."""
    here = dict(zip(("train", "evaluation"), map(revision, items), strict=True))
    distinct: dict[tuple[str | None, ...], str] = {}
    for name, sections in runs.items():  # of thousands, nearly all say the same
        keys = ("format", "recipe", "rules", "scale", "data_revision", "versions")
        distinct.setdefault(tuple(map(sections.get, keys)), name)
    for name in distinct.values():
        if unreadable := newer(runs[name]):
            raise ValueError(f"--runs: run {name}: {unreadable}")
        _check_items(name, runs[name], data, here)
        _check_grader(name, versions(runs[name]))


def _check_items(name: str, sections: dict[str, str], data: Data, here: dict[str, str]) -> None:
    there = data_revision(sections)
    for part in here:
        if there.get(part, here[part]) != here[part]:
            _check_settings(name, sections, data)
            path = getattr(data, part)
            what, fix = ("its items have", "use the versions in its run.yaml")
            if Path(path).is_file():
                what, fix = ("the file has", "put the file back")
            raise ValueError(
                f"data.{part}={path}: {what} changed since run {name}: revision {there[part]} there, {here[part]} "
                f"here; {fix}, or {ELSEWHERE}"
            )


def _check_settings(name: str, sections: dict[str, str], data: Data) -> None:
    """Raises ValueError if a run was set to other data: then no file has changed."""
    scale = section("scale", sections.get("scale", "{}")).tree
    settings = scale.get("data") if isinstance(scale, dict) else None
    if isinstance(settings, dict) and (found := first_difference(settings, plain(data), "scale.data")):
        raise ValueError(f"--runs: run {name} was made {apart(*found)}; {ELSEWHERE}")


def _check_grader(name: str, there: dict[str, str]) -> None:
    if there.get("grader", str(GRADER)) != str(GRADER):
        rankrl = f"rankrl {there.get('rankrl')} at commit {there.get('git_commit')}"
        raise ValueError(
            f"grader: got version {GRADER}, allowed: {there['grader']}, which graded run {name} (two versions' scores "
            f"do not compare: use {rankrl}, or {ELSEWHERE})"
        )
