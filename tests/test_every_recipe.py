"""Recipes that no other file runs, with all of their arms, reduced, on one bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_runs import bench_of, lines, train
from conftest import ROOT, runs_of

from rankrl.recipe.plan import Run

ELSEWHERE = {"demo", "smollm2", "ablate_allocation", "ablate_advantage", "ablate_critic"}
"""Run whole or reduced by tests of their own."""
TINY = ("seeds=[0]", "steps=2", "eval_every=0", "scale.sampling.eval_samples=1", "scale.data.eval_items=64")
AT_ONE_RATE = ("rules.lr={rule: constant}", "arms.on_olora_tail_own_frozen.rules.lr.rule=measured")
"""Measuring the first steps of one arm is enough: of all ten it takes minutes."""
LESS = ("arms.value_warmup.critic.warmup_steps=1", "arms.brakes.brakes.max_norm_ratio=null")
"""What two steps have no room for."""
FEWER = tuple(f"arms.{arm}.init.prompts=32" for arm in ("on", "on_fisher", "on_off_principal"))
"""Prompts that are enough here for arms that measure gradients."""
REDUCED: dict[str, tuple[str, ...]] = {
    "baseline": ("ranks=[256]", "batch_sizes=[8]"),
    "low_rank": ("ranks=[2]",),
    "seeds": ("ranks=[4]", "stages={first: 0, add: 0, confirm: 0}"),
    "ablate_init": ("ranks=[4]", "rules.warmup=0", *FEWER),
    "ablate_optim": ("ranks=[1]", "batch_sizes=[8]"),
    "ablate_variance": ("ranks=[1]", "batch_sizes=[4]", *LESS),
    "tail": ("ranks=[1]", "batch_sizes=[6]", *AT_ONE_RATE),
    "published": ("ranks=[1,64]", "batch_sizes=[8]"),
}


def reduced(recipe: str) -> list[Run]:
    return runs_of(recipe, *TINY, *REDUCED[recipe])


def test_every_recipe_is_run_somewhere():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == {*ELSEWHERE, *REDUCED}


@pytest.mark.slow
def test_reduced_recipes_keep_their_arms():
    ids = [run.run_id for recipe in REDUCED for run in reduced(recipe)]
    assert len({*ids}) == len(ids), "runs of one bench need names of their own"
    for recipe in REDUCED:
        assert {run.arm for run in reduced(recipe)} == {run.arm for run in runs_of(recipe)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[tuple[list[Run], Path]]:
    runs = [run for recipe in REDUCED for run in reduced(recipe)]
    with bench_of(runs, tmp_path_factory.mktemp("runs"), 3) as bench:
        yield runs, train(bench, runs, "reduced", 8)


@pytest.mark.pipeline
def test_every_arm_finishes_and_differs(trained):
    runs, root = trained
    for run in runs:
        result = json.loads((root / run.sweep / run.run_id / "result.json").read_text())
        assert (result["status"], result["steps"]) == ("finished", 2), result
    for recipe in ("ablate_init", "ablate_optim", "ablate_variance", "tail"):
        ends = {run.arm: lines(root, run)[-1] for run in runs if run.sweep == recipe}
        did = {arm: (line["grad_norm"], line["delta_norm"]) for arm, line in ends.items()}
        same = {frozenset(arm for arm in did if did[arm] == values) for values in did.values()}
        # two steps of a trust region, of a cosine and within brakes may be those of `off`
        may = {"off", "trust_region", "brakes", "cosine", "averaging"}
        assert all(len(group) == 1 or group <= may for group in same), same
