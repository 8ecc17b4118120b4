"""The study's records and its sums.

Packed and unpacked, records give the report that the runs themselves give.
"""

from __future__ import annotations

import itertools
from importlib import import_module

import pandas as pd
import pytest
from conftest import ROOT, runs_of
from records import ablation, small

from rankrl.report.build import build


@pytest.fixture
def study(monkeypatch):
    """Imports a file of study/."""
    monkeypatch.syspath_prepend(str(ROOT / "study"))
    return import_module


def test_the_report_of_what_was_kept_is_that_of_the_runs(study, tmp_path):
    keep, root, file = study("keep"), small(tmp_path / "runs"), tmp_path / "part.parquet"
    finished = len([*root.glob("*/result.json")])
    assert keep.pack(root.parent, file) == finished == 6
    assert keep.unpack(file, tmp_path / "again") == finished
    (first,), (again,) = (build(path, tables_only=True) for path in (root, tmp_path / "again" / root.name))
    assert first["claims"]
    told = {key for key in first if first[key] != again[key]}
    assert told <= {"problems", "n_planned", "words"}, "plan.json is not kept"


def test_a_part_grows_and_no_run_of_it_changes(study, tmp_path):
    keep, file, one = study("keep"), tmp_path / "part.parquet", small(tmp_path / "one")
    keep.pack(one.parent, file)
    ablation(tmp_path / "one")
    assert (n := keep.pack(one.parent, file)) > 6
    failed = next((tmp_path / "one" / "ablation").glob("*/result.json"))
    failed.write_text(failed.read_text().replace("finished", "failed"))
    assert keep.pack(one.parent, tmp_path / "other.parquet") == n - 1, "what failed has no outcome"
    result = next(one.glob("*/result.json"))
    result.write_text(result.read_text().replace("gain", "gone"))
    with pytest.raises(ValueError, match="allowed: each run once"):
        keep.pack(one.parent, file)


@pytest.mark.parametrize("recipe", sorted((ROOT / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_study_plans_runs_on_the_plans_seeds(recipe):
    seeds = {
        "study_a": range(12, 16),
        "study_a_batch": range(12, 16),
        "study_d_64": range(40, 44),
        "study_e": range(50, 56),
    }
    found = runs_of(f"../study/{recipe.stem}")
    assert {run.seed for run in found} == {*seeds[recipe.stem]}
    assert {run.recipe.steps for run in found} == {60}


def grid_of(gain):
    """Runs of part A: gain by exponent, rank and rate, the same of two seeds."""
    cells = itertools.product(("constant", "sqrt", "proportional"), (1, 32, 256), (5e-4, 1e-3, 2e-3, 4e-3), (12, 13))
    rows = [(f"{name}_x", rank, lr, seed, gain(name, rank, lr)) for name, rank, lr, seed in cells]
    return pd.DataFrame(rows, columns=["arm", "rank", "lr", "seed", "gain"]).assign(sweep="study_a")


def test_the_power_of_rank_in_the_best_rate_is_fitted_seed_by_seed(study):
    best = {"constant": {1: 1e-3, 32: 1e-3, 256: 1e-3}, "sqrt": {1: 2e-3, 32: 1e-3, 256: 1e-3}}
    table = grid_of(lambda name, rank, lr: -abs(lr - best.get(name, {1: 4e-3, 32: 1e-3, 256: 5e-4})[rank]))
    slopes = study("part_a").slopes
    assert slopes(table, "constant").tolist() == pytest.approx([0, 0])
    assert (study("part_a").at_edge(table, "constant"), study("part_a").at_edge(table, "proportional")) == (0, 4)
    unfinished = study("part_a").grid(table.iloc[:-1])
    assert set(unfinished["rank"]) == {1, 32}, "a rank whose runs are not all there would have a best rate by luck"
    # of the rate's log2 (2, 0, -1) on the rank's (0, 5, 8): (-65 - 2 - 44) / 9 over 294 / 9
    assert slopes(table, "proportional").tolist() == pytest.approx([-111 / 294] * 2)


def test_differences_are_of_the_same_seeds_and_a_diverged_run_has_lost_its_base(study):
    table = pd.DataFrame({"seed": [1, 2, 3, 1, 2], "arm": list("aaabb"), "gain": [0.3, 0.5, 9.0, 0.1, 0.2]})
    found = study("runs").difference(table, table["arm"] == "a", table["arm"] == "b")
    assert (found.n, found.mean) == (2, pytest.approx(0.25))
    assert found.low == pytest.approx(0.25 - 12.7062 * 0.05, abs=1e-3)
    assert study("runs").mean_interval([0.2, 0.3], family=2).low == pytest.approx(0.25 - 25.4517 * 0.05, abs=1e-3)
    texts = {"result_json": '{"status": "diverged", "base_score": 0.25, "gain": 0.1, "arm": "", "rank": 1, "seed": 0,'}
    texts["result_json"] += ' "batch_size": 16, "tokens_total": 5}'
    texts["run_yaml"] = "derived: {lr: {value: 1}, alpha: {value: 2}}"
    assert study("runs")._row({"sweep": "s", **texts})["gain"] == -0.25
