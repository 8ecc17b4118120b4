"""The KL per step of finished runs of one cell, which `trust_region.target=reference` steers to."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from rankrl.recipe.require import require
from rankrl.recipe.whole_file import whole_file
from rankrl.report.metric_lines import number
from rankrl.report.read import curves, find_sweeps
from rankrl.report.resolved import compared_sections, section

RANK = 32
"""The reference rank."""
SHARES = 10
"""Equal shares of a run, with a median each: of one step alone it would be noise."""


def reference_curve(directory: Path, cell: str | None = None) -> dict[str, Any]:
    """The curve of the finished runs of a cell, such as r32-b16, and what they were.

    Without `cell` it is the only one of the reference rank. Raises ValueError if there is no such
    cell, or if its runs are too short.
    """
    sweeps = find_sweeps(directory)
    names = [sweep.name for sweep in sweeps]
    require(len(sweeps) == 1, "DIR", names, "one sweep", "give the directory of one")
    finished = [result for result in sweeps[0].counted if result["status"] == "finished"]
    cells: dict[str, list[dict[str, Any]]] = {}
    for result in finished:
        cells.setdefault(result["run_id"].rpartition("-s")[0], []).append(result)
    fitting = [name for name, runs in cells.items() if cell == name or (cell is None and runs[0]["rank"] == RANK)]
    allowed = f"one of {', '.join(cells) or 'none: no run has finished'}"
    require(len(fitting) == 1, "--cell", cell, allowed, f"without it, the only one of rank {RANK}")
    runs = cells[fitting[0]]
    return _curve([sweeps[0].directory / run["run_id"] for run in runs], runs[0])


def _curve(runs: list[Path], result: dict[str, Any]) -> dict[str, Any]:
    sections, problem = compared_sections(runs[0])
    whole = not problem and {"recipe", "scale"} <= sections.keys()
    require(whole, "DIR", str(runs[0] / "run.yaml"), "a whole record", problem or "it is cut off")
    recipe, scale = (section(key, sections[key]).tree for key in ("recipe", "scale"))
    steps = result["steps"]
    alone = recipe["critic"]["warmup_steps"] if recipe["advantage"]["method"] == "gae" else 0  # only the critic learns
    allowed, fix = f"runs of at least {2 * SHARES} steps", f"the curve has {SHARES} shares"
    require(steps - alone >= 2 * SHARES, "DIR", f"{steps - alone} steps in which the policy learns", allowed, fix)
    prompts = (
        result["batch_size"]
        * (recipe["batch_samples_per_prompt"] or 1)
        // (recipe["samples_per_prompt"] if recipe["batch_samples_per_prompt"] else 1)
    )
    each = recipe["minibatch_prompts"]
    kls = [by_update(curves(run), alone) for run in runs]
    return {
        "scale": scale["name"],
        "rank": result["rank"],
        "batch_size": result["batch_size"],
        "steps": steps,
        "updates_per_rollout": prompts // each if each else recipe["updates_per_rollout"],
        "runs": len(runs),
        "kl_step": shared_medians(kls, steps - alone),
    }


def by_update(lines: list[dict[str, Any]], alone: int = 0) -> list[float | None]:
    """The KL of each update of the policy from the lines of its metrics.jsonl; None: not known.

    A line has the KL of the update before. In the first `alone` steps only the critic learns.
    """
    found: list[Any] = [line.get("kl_step") for line in lines[alone + 1 :]]
    return [kl if number(kl) and kl > 0 else None for kl in found]


def shared_medians(kls: list[list[float | None]], updates: int) -> list[float]:
    """The median KL of all runs in each of `SHARES` equal shares of a run of `updates`."""
    shares: list[list[float]] = [[] for _ in range(SHARES)]
    for run in kls:
        for update, kl in enumerate(run):
            if kl is not None:
                shares[update * SHARES // updates].append(kl)
    empty = [i + 1 for i, found in enumerate(shares) if not found]
    require(not empty, "kl_step", f"none in shares {empty} of {SHARES}", "a KL above 0 in every share of the runs")
    return [float(f"{median(found):.4g}") for found in shares]


def write_curve(curve: dict[str, Any], to: Path) -> None:
    """Writes a curve as JSON, a key on each line. Replaces an older one."""
    to.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in curve.items()]
    with whole_file(to) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
