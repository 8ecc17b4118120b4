"""An ablation recipe in the real pipeline at scale=nano: all arms, and what reports compare."""

from __future__ import annotations

import json

import pytest
from conftest import rankrl, runs_of

SHORT = ("seeds=[0,1]", "steps=3", "rules.warmup=0", "scale.sampling.eval_samples=1")
FEWER = {"on": 128, "on_half": 128, "on_proportional": 128, "on_fisher": 32} | {
    "control_random": 128,
    "control_reversed": 128,
}
"""Numbers of prompts that are enough here for the arms that measure gradients. With fewer, too
little measured importance is left to allocate ranks by."""


@pytest.mark.pipeline
def test_every_arm_trains_and_is_compared_with_off(tmp_path):
    recipe, fewer = "ablate_allocation", (f"arms.{arm}.allocation.prompts={prompts}" for arm, prompts in FEWER.items())
    words = ("ranks=[8]", *SHORT, *fewer)
    done = rankrl("sweep", f"recipes/{recipe}.yaml", *words, "--runs", str(tmp_path), timeout_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = runs_of(recipe, *words)
    arms = {run.arm for run in runs} - {"off"}
    for run in runs:
        result = json.loads((tmp_path / recipe / run.run_id / "result.json").read_text())
        assert (result["status"], result["steps"]) == ("finished", 3), result
        assert 0.99 * run.trainable_params <= result["trainable_params"] <= run.trainable_params
    rows = json.loads((tmp_path / recipe / "report" / "summary.json").read_text())["comparisons"]
    assert [(row["against"], row["n_pairs"]) for row in rows] == [("off", 2)] * len(arms)
    assert {row["arm"] for row in rows} == arms
    assert all(0.99 <= row["params_ratio"] <= 1.01 for row in rows)
    varies = any(abs(row["differences"][0] - row["differences"][1]) >= 1e-9 for row in rows)
    assert all((row["difference_ci95"] is not None) == varies for row in rows)  # the noise is told by all arms
    ends = [json.loads(path.read_text().splitlines()[-1]) for path in (tmp_path / recipe).glob("*/metrics.jsonl")]
    assert len({line["grad_norm"] for line in ends}) == len(runs), "arms that do the same thing"
    assert "gain minus that of arm off" in done.stdout
    spent = [(tmp_path / recipe / run.run_id / "adapter" / "allocation.json").read_text() for run in runs]
    ranks = [tuple(row["rank"] for row in json.loads(text)["modules"]) for text in spent]
    assert all(table != (8,) * 14 for run, table in zip(runs, ranks, strict=True) if run.arm != "off")


def test_arms_of_other_sizes_are_refused_in_one_line():
    done = rankrl("plan", "recipes/ablate_allocation.yaml", "arms.on_half.allocation.budget_rank=7")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "55,552 parameters in arm on_half and 63,488 in arm" in done.stderr


def test_arms_may_differ_where_the_recipe_says_so():
    runs = runs_of("ablate_allocation", "arms.on_half.allocation.budget_rank=7", "equal_params=null")
    assert {run.trainable_params for run in runs if run.arm in ("off", "on_half")} == {55_552, 63_488}
