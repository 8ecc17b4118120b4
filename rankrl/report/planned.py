"""Reads plan.json: which runs a sweep has, and how many PPO steps each one makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankrl.recipe.run_id import parse_run_id, run_id
from rankrl.report.regular_file import missing
from rankrl.report.resolved import short
from rankrl.report.valid import encodable, read_json

PLAN = "plan.json"
LARGEST_PLAN_BYTES = 1 << 26
LONGEST_NAME = 200
MOST_NAMED = 3


def read_plan(root: Path) -> dict[str, int]:
    """Run id -> planned PPO steps, from plan.json; {} if there is no readable plan."""
    return checked_plan(root)[0]


def checked_plan(root: Path) -> tuple[dict[str, int], list[str]]:
    """(run id -> planned PPO steps, problems) of a plan.json; damaged entries are left out."""
    if missing(root / PLAN):
        return {}, []
    try:
        plan = read_json(root / PLAN, LARGEST_PLAN_BYTES)
    except ValueError as error:
        return {}, [f"{PLAN}: {error}; which runs are missing is not known"]
    if not isinstance(plan, dict):
        return {}, [f"{PLAN}: {short(plan)}, no run ids with their steps; which runs are missing is not known"]
    wrong = {name: problem for name, steps in plan.items() if (problem := _problem(name, steps))}
    said = [f"{PLAN}: {problem}; left out" for problem in list(wrong.values())[:MOST_NAMED]]
    if len(wrong) > MOST_NAMED:
        said.append(f"{PLAN}: {len(wrong) - MOST_NAMED} more entries are damaged; left out")
    return {name: steps for name, steps in plan.items() if name not in wrong}, said


def _problem(name: str, steps: Any) -> str:
    """What is wrong with an entry of a plan; "" if nothing is."""
    place = parse_run_id(name)
    shown = short(name)
    if place is None or set("/\0") & set(name) or len(name) > LONGEST_NAME or not encodable(name):
        return f"{shown} is no run id"
    if name != run_id(*place):
        return f"{shown} is another name of {short(run_id(*place))}"
    return "" if type(steps) is int and 0 < steps < 2**63 else f"{shown} has {short(steps)} steps"
