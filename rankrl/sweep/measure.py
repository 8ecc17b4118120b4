"""`rankrl measure`: what the first optimizer step of each rank does, without training."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.first_step import FirstSteps
from rankrl.recipe.measurable import check_measurable
from rankrl.recipe.plan import Run, largest_rank
from rankrl.recipe.scale import Execution
from rankrl.sweep.first_step_cache import cached
from rankrl.sweep.local import bench_for


def measured_rows(runs: list[Run], directory: Path) -> list[dict[str, Any]]:
    """A row per arm and rank, from the cache under `directory` or measured now.

    Services are started only if something is not cached, and are gone at the end.
    """
    arms = {run.arm: run for run in reversed(runs)}  # the first of each
    for run in arms.values():
        check_measurable(run.recipe, run.scale, largest_rank(run.scale))
    found = {arm: cached(run, directory) for arm, run in arms.items()}
    left = [run for arm, run in arms.items() if found[arm] is None]
    if left:
        with redirect_stdout(sys.stderr):  # stdout has the answer alone
            found |= _measured(left, directory)
    return [
        ({"arm": arm} if arm else {}) | row
        for arm in dict.fromkeys(run.arm for run in runs)
        for row in _rows(found[arm])
    ]


def _rows(found: FirstSteps | None) -> list[dict[str, Any]]:
    assert found is not None
    return found.rows()


def _measured(runs: list[Run], directory: Path) -> dict[str, FirstSteps]:
    """Arm -> its first steps. Raises ValueError, one line, if a service fails."""
    with bench_for([without_critic(run) for run in runs], directory, Execution(parallel_runs=1)) as bench:
        import ray

        try:
            return {run.arm: bench.first_steps(run) for run in runs}
        except ray.exceptions.RayError as error:
            if isinstance(error, ValueError):
                raise
            said = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise ValueError(f"RECIPE: a service failed: {said[:500]}") from error


def without_critic(run: Run) -> Run:
    """A run for whose services no value worker is started: none is needed here."""
    samples = max(2, run.recipe.samples_per_prompt)
    alone = replace(
        run.recipe,
        advantage=Advantage("rloo"),
        samples_per_prompt=samples,
        batch_samples_per_prompt=None,
        minibatch_prompts=None,
    )
    return replace(run, recipe=alone)
