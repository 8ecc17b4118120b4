"""Recipes that no other file runs, with all of their arms, reduced, on one bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_runs import bench_of, lines, train
from conftest import ROOT, rankrl, runs_of

from rankrl.recipe.plan import Run

ELSEWHERE = {"demo", "smollm2", "ablate_advantage", "ablate_critic"}
"""Run whole or reduced by tests of their own."""
TINY = ("seeds=[0]", "steps=2", "eval_every=0", "scale.sampling.eval_samples=1", "scale.data.eval_items=64")
AT_ONE_RATE = ("rules.lr={rule: constant}", "arms.on_olora_tail_own_frozen.rules.lr.rule=measured")
"""Measuring the first steps of one arm is enough: of all ten it takes minutes."""
LESS = ("arms.value_warmup.critic.warmup_steps=1", "arms.brakes.brakes.max_norm_ratio=null")
"""What two steps have no room for."""
FEWER = tuple(f"arms.{arm}.init.prompts=32" for arm in ("on", "on_fisher", "on_off_principal"))
"""Prompts that are enough here for arms that measure gradients."""
ALLOCATED = {"on": 128, "on_half": 128, "on_proportional": 128, "on_fisher": 32} | {
    "control_random": 128,
    "control_reversed": 128,
}
"""So for arms that allocate ranks. With fewer prompts, too little measured importance is left."""
REDUCED: dict[str, tuple[str, ...]] = {
    "baseline": ("ranks=[256]", "batch_sizes=[8]"),
    "low_rank": ("ranks=[2]",),
    "seeds": ("ranks=[4]", "stages={first: 0, add: 0, confirm: 0}"),
    "ablate_init": ("ranks=[4]", "rules.warmup=0", *FEWER),
    "ablate_allocation": (
        "ranks=[8]",
        "rules.warmup=0",
        *(f"arms.{arm}.allocation.prompts={prompts}" for arm, prompts in ALLOCATED.items()),
    ),
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
    for recipe in ("ablate_init", "ablate_allocation", "ablate_optim", "ablate_variance", "tail"):
        ends = {run.arm: lines(root, run)[-1] for run in runs if run.sweep == recipe}
        did = {arm: (line["grad_norm"], line["delta_norm"]) for arm, line in ends.items()}
        same = {frozenset(arm for arm in did if did[arm] == values) for values in did.values()}
        # two steps of a trust region, of a cosine and within brakes may be those of `off`
        may = {"off", "trust_region", "brakes", "cosine", "averaging"}
        assert all(len(group) == 1 or group <= may for group in same), same


@pytest.mark.pipeline
def test_allocated_ranks_cost_what_a_uniform_one_does_and_are_compared_with_it(trained):
    runs = [run for run in trained[0] if run.sweep == "ablate_allocation"]
    root = trained[1] / "ablate_allocation"
    for run in runs:
        result = json.loads((root / run.run_id / "result.json").read_text())
        assert 0.99 * run.trainable_params <= result["trainable_params"] <= run.trainable_params
        rows = json.loads((root / run.run_id / "adapter" / "allocation.json").read_text())["modules"]
        assert (tuple(row["rank"] for row in rows) == (8,) * 14) == (run.arm == "off")
    done = rankrl("report", str(root))
    assert done.returncode == 0 and "gain minus that of arm off" in done.stdout, done.stdout + done.stderr
    rows = json.loads((root / "report" / "summary.json").read_text())["comparisons"]
    assert {(row["against"], row["n_pairs"]) for row in rows} == {("off", 1)}
    assert {row["arm"] for row in rows} == {run.arm for run in runs} - {"off"}
    assert all(0.99 <= row["params_ratio"] <= 1.01 for row in rows)


def test_arms_of_other_sizes_are_refused_in_one_line():
    done = rankrl("plan", "recipes/ablate_allocation.yaml", "arms.on_half.allocation.budget_rank=7")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "55,552 parameters in arm on_half and 63,488 in arm" in done.stderr


def test_arms_may_differ_where_the_recipe_says_so():
    runs = runs_of("ablate_allocation", "arms.on_half.allocation.budget_rank=7", "equal_params=null")
    assert {run.trainable_params for run in runs if run.arm in ("off", "on_half")} == {55_552, 63_488}
