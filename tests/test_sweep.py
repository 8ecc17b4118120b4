"""`rankrl sweep` as a user types it, with its driver killed by SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from rankrl.ppo.guardian import marked

pytestmark = pytest.mark.pipeline

WORDS = [
    "recipes/demo.yaml",
    "ranks=[8]",
    "seeds=[0,1,2,3]",
    "parallel_runs=2",
    "steps=12",
    "checkpoint_every=4",
    "scale.sampling.eval_samples=2",
    "scale.sampling.base_samples=2",
]
MARK = "RANKRL_TEST_SWEEP"


@contextmanager
def sweeping(runs: Path, mark: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process of its own. Processes that remain when the test fails are killed."""
    command = [sys.executable, "-m", "rankrl", "sweep", *WORDS, "--runs", str(runs)]
    environment = {**os.environ, MARK: mark}
    with (runs / f"{mark}.log").open("w+") as log:
        sweep = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True, env=environment)
        try:
            yield sweep
        finally:
            sweep.kill()
            for process in alive(mark):
                process.kill()


def alive(mark: str) -> list[psutil.Process]:
    """Processes that this sweep started, found by an environment variable that they inherit."""
    return marked(mark, MARK)


def lines(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, timeout_s: float) -> bool:
    end = time.time() + timeout_s
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_kill_resume_skip_and_report(tmp_path):
    """Two runs have finished and two are training when the sweep is killed."""
    finished, broken = [[tmp_path / "demo" / f"r8-b16-s{seed}" for seed in seeds] for seeds in ((0, 1), (2, 3))]
    with sweeping(tmp_path, "first") as sweep:
        assert wait_until(lambda: min(len(lines(run)) for run in broken) >= 6 or sweep.poll() is not None, 400)
        assert sweep.poll() is None, (tmp_path / "first.log").read_text()
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
        assert wait_until(lambda: not alive("first"), 30), alive("first")

    results = [(run / "result.json").read_bytes() for run in finished]
    assert not any((run / "checkpoint").exists() for run in finished)
    assert not any((run / "result.json").exists() for run in broken)
    before = [{line["step"]: line for line in lines(run)} for run in broken]
    saved = [max(curve) // 4 * 4 for curve in before]

    with sweeping(tmp_path, "second") as again:
        assert again.wait(timeout=400) == 0
        assert wait_until(lambda: not alive("second"), 30), alive("second")
    output = (tmp_path / "second.log").read_text()
    assert "2 of 4 runs are finished, 2 to do" in output
    assert "[2/2] r8-b16-s" in output
    for run, curve, step in zip(broken, before, saved, strict=True):
        assert f"{run.name}: resumed at step {step}" in output
        check_curve(curve, step, lines(run))
        assert not (run / "checkpoint").exists()

    assert [(run / "result.json").read_bytes() for run in finished] == results
    report = tmp_path / "demo" / "report"
    assert json.loads((report / "summary.json").read_text())["cells"][0]["n_seeds"] == 4
    assert "rank 8" in (report / "index.html").read_text()


def check_curve(before: dict[int, dict], saved: int, after: list[dict]) -> None:
    """Asserts that steps up to the checkpoint are unchanged, that later ones were repeated, and
    that the curve does not jump."""
    assert [line["step"] for line in after] == list(range(1, 13))
    assert all(after[step - 1] == before[step] for step in range(1, saved + 1))
    tokens = [line["tokens_total"] for line in after]
    assert tokens == sorted(tokens)
    for step in set(before) - set(range(1, saved + 1)):  # the same prompts and nearly the same policy
        assert abs(after[step - 1]["accuracy"] - before[step]["accuracy"]) < 0.05


def test_two_sweeps_cannot_share_a_directory(tmp_path):
    from rankrl.sweep.owner import owned

    with owned(tmp_path / "demo"), sweeping(tmp_path, "other") as other:
        assert other.wait(timeout=60) == 2
    assert "is in use by process" in (tmp_path / "other.log").read_text()
