"""The study's records: packed and unpacked, they give the report that the runs themselves give."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location

import pytest
from conftest import ROOT
from records import ablation, small

from rankrl.report.build import build

spec = spec_from_file_location("keep", ROOT / "study" / "keep.py")
keep = module_from_spec(spec)
spec.loader.exec_module(keep)


def test_the_report_of_what_was_kept_is_that_of_the_runs(tmp_path):
    root, file = small(tmp_path / "runs"), tmp_path / "part.parquet"
    finished = len([*root.glob("*/result.json")])
    assert keep.pack(root.parent, file) == finished == 6
    assert keep.unpack(file, tmp_path / "again") == finished
    (first,), (again,) = (build(path, tables_only=True) for path in (root, tmp_path / "again" / root.name))
    assert first["claims"]
    assert {key for key in first if first[key] != again[key]} <= {"problems", "n_planned", "words"}, "plan.json is not kept"


def test_a_part_grows_and_no_run_of_it_changes(tmp_path):
    file = tmp_path / "part.parquet"
    one = small(tmp_path / "one")
    keep.pack(one.parent, file)
    ablation(tmp_path / "one")
    assert keep.pack(one.parent, file) > 6
    result = next(one.glob("*/result.json"))
    result.write_text(result.read_text().replace("gain", "gone"))
    with pytest.raises(ValueError, match="allowed: each run once"):
        keep.pack(one.parent, file)
