"""A recipe with `stages`: which runs to do next.

There is no other state than plan.json and the results.
"""

from __future__ import annotations

import json
from pathlib import Path

from rankrl.recipe.plan import Run
from rankrl.recipe.whole_file import whole_file
from rankrl.report.planned import read_plan
from rankrl.report.read import CONFIRM, read_sweep


def staged(runs: list[Run]) -> bool:
    return runs[0].recipe.stages.first > 0


def next_stage(runs: list[Run], root: Path) -> tuple[list[Run], str]:
    """The runs to do now and the reason for them; no runs if the sweep has reached its end.

    The runs of a stage that has not ended come first. Runs with the seeds that are kept back for
    the confirmation do not influence the choice, whoever made them and whenever.
    """
    if not staged(runs):
        return runs, f"{len(runs)} runs"
    stages, seeds = runs[0].recipe.stages, runs[0].recipe.seeds
    ids = read_plan(root)
    planned = [run for run in runs if run.run_id in ids]
    first = [run for run in runs if run.seed in seeds[: stages.first]]
    if any(run.run_id not in ids for run in first):
        return first, f"first stage: {stages.first} seeds for every cell"
    records = read_sweep(root)
    done = {result["run_id"] for result in records.results}
    left = [run for run in planned if run.run_id not in done]
    if left:
        return planned, f"{len(left)} runs of this stage are left"
    from rankrl.report.statistics.sequential import propose  # imports scipy, which most sweeps do not need

    kept_back = set(seeds[len(seeds) - stages.confirm :])
    names = {run.run_id for run in runs if run.seed not in kept_back}
    choosing = [result for result in records.counted if result["run_id"] in names]
    found = propose(choosing, stages.add, list(seeds[: len(seeds) - stages.confirm]))
    chosen = {(r["arm"], r["rank"], r["batch_size"], seed) for r in found["cells"] for seed in r["seeds"]}
    if found["stop"]:
        out = {(r["arm"], r["rank"], r["batch_size"]) for r in found["below"]}
        cells = {_cell(run) for run in planned} - out
        chosen = {(*cell, seed) for cell in cells for seed in kept_back}
    now = [run for run in runs if (*_cell(run), run.seed) in chosen]
    if all(run.run_id in ids for run in now):
        return [], "all stages are done" + (", the confirmation too" if kept_back else f": {found['why']}")
    return now, f"{'confirmation on fresh seeds' if found['stop'] else 'next stage'}: {found['why']}; {len(now)} runs"


def keep_back(runs: list[Run], root: Path) -> None:
    """Writes into the sweep's directory which seeds are kept back for the confirmation.

    The report reads it.
    """
    recipe = runs[0].recipe
    if staged(runs) and recipe.stages.confirm:
        root.mkdir(parents=True, exist_ok=True)
        with whole_file(root / CONFIRM) as part:
            part.write_text(json.dumps(list(recipe.seeds[-recipe.stages.confirm :])) + "\n")


def _cell(run: Run) -> tuple[str, int, int]:
    return run.arm, run.rank, run.batch_size
