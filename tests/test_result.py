"""result.json and the run id: each has one shape, written and read alike."""

from __future__ import annotations

import json

import pytest
from conftest import runs_of

from rankrl.recipe.run_id import parse_run_id, run_id
from rankrl.report.read import read_result
from rankrl.report.result import Result
from rankrl.report.valid import COUNTS, FRACTIONS, TEXTS, result_problem

WRITTEN = """{
 "run_id": "r8-b16-s1",
 "arm": "",
 "rank": 8,
 "batch_size": 16,
 "seed": 1,
 "status": "finished",
 "base_score": 0.25,
 "final_score": 0.5,
 "best_score": 0.625,
 "gain": 0.25,
 "tokens_total": 4096,
 "steps": 30,
 "wall_s": 12.5,
 "trainable_params": 63488,
 "base_params": 1198080
}
"""


def test_a_result_is_written_as_the_contract_says(tmp_path):
    (run,) = runs_of("demo", "ranks=[8]", "seeds=[1]")
    result = Result.of(run, "finished", 0.25, 0.5, 0.625, 4096, 30, 12.5, 63488)
    assert result.as_json() == WRITTEN
    assert result_problem(result.as_dict()) == ""
    (tmp_path / "result.json").write_text(result.as_json())
    assert read_result(tmp_path) == json.loads(WRITTEN) | {"error": ""}


def test_a_failed_run_has_an_error_and_no_scores(tmp_path):
    (run,) = runs_of("demo", "ranks=[8]", "seeds=[1]")
    result = Result.of(run, "failed", 0.25, None, None, 4096, 3, 12.5, 63488, "OSError: disk full")
    scores = {"final_score": None, "best_score": None, "gain": None, "status": "failed", "steps": 3}
    assert result.as_dict() == json.loads(WRITTEN) | scores | {"error": "OSError: disk full"}
    assert list(result.as_dict())[-1] == "error"
    (tmp_path / "result.json").write_text(result.as_json())
    assert read_result(tmp_path) == result.row()
    assert Result.of(run, "failed", None, None, None, 0, 0, 0.0, 1).gain is None


def test_an_error_that_is_no_text_is_told_as_one(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(json.loads(WRITTEN) | {"error": {"no": "text"}, "more": 1}))
    assert read_result(tmp_path) == json.loads(WRITTEN) | {"error": "{'no': 'text'}"}


def test_what_is_checked_follows_from_the_types():
    assert TEXTS == ("run_id", "arm", "status")
    assert COUNTS == ("rank", "batch_size", "seed", "tokens_total", "steps", "trainable_params", "base_params")
    assert FRACTIONS == ("base_score", "final_score", "best_score", "gain")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("r1-b16-s0", ("", 1, 16, 0)),
        ("off-r256-b128-s4294967295", ("off", 256, 128, 4294967295)),
        ("r1-b2-s3-r4-b5-s6", ("r1-b2-s3", 4, 5, 6)),
    ],
)
def test_a_run_id_is_read_as_it_is_written(name, place):
    assert run_id(*place) == name
    assert parse_run_id(name) == place


@pytest.mark.parametrize(
    "name", ["report", "r1-b16", "r1-b16-s0 (copy)", ".off-r1-b16-s0", "-r1-b16-s0", "xr1-b16-s0", ""]
)
def test_other_names_are_no_runs(name):
    assert parse_run_id(name) is None
