"""bench/gpu.py, which is for a GPU, with tiny parts on a CPU."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))


def test_parts_share_the_seconds():
    import gpu

    assert sum(gpu.limits(600, list(gpu.PARTS)).values()) == pytest.approx(600)
    assert gpu.limits(550, ["update", "smollm2"]) == pytest.approx({"update": 250, "smollm2": 300})


def test_the_table_has_the_estimate_beside_what_was_found():
    import gpu

    rows = [
        {"part": "update", "what": "peak GB", "value": 31.4159, "estimate": 30.0},
        {"part": "nano", "what": "alone and again", "value": "equal"},
    ]
    assert gpu.table(rows).splitlines()[2:] == [
        "| update | peak GB | 31.42 | 30 |",
        "| nano | alone and again | equal |  |",
    ]


def test_a_part_that_fails_or_hangs_loses_nothing_else(tmp_path, monkeypatch):
    import gpu

    monkeypatch.setattr(gpu, "GRACE_S", 0.0)
    script = tmp_path / "gpu_parts.py"
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
    script.write_text("import sys; sys.exit(3)")
    assert gpu.run("nano", 5, tmp_path / "rows") == "exit code 3"
    script.write_text("import time; time.sleep(60)")
    assert gpu.run("nano", 0.2, tmp_path / "rows") == "stopped after 0 s"


@pytest.mark.slow
def test_updates_are_measured_beside_their_estimates(tmp_path):
    command = [sys.executable, "bench/gpu.py", "--seconds", "240", "--only", "update", "--json", str(tmp_path / "rows")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    found = {row["what"]: row for row in rows}
    row = found["tiny for Qwen3-8B, adapters in float32, 2 x 12 tokens, rank 32: microseconds a token"]
    assert row["value"] > 0 and row["estimate"] > 0
    assert f"| update | {row['what']} |" in done.stdout
