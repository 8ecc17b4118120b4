"""`sbatch slurm/sweep.sh` on a real Slurm of two virtual nodes, through what ends jobs on a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(os.geteuid() != 0, reason="virtual nodes need root"),
    pytest.mark.skipif("RANKRL_TEST_SLURM" not in os.environ, reason="not yet seen to pass: set RANKRL_TEST_SLURM=1"),
]
CLUSTER = ROOT / "tests" / "virtual_cluster.sh"
STEPS = 24
WORDS = ["recipes/low_rank.yaml", "scale=nano", "ranks=[1,8]", "seeds=[0,1]", f"steps={STEPS}", "checkpoint_every=4",
         "scale.sampling.eval_samples=1", "scale.slurm.runs_per_task=2", "scale.slurm.cpus_per_node=2"]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """Directory of a running cluster. Slurm's commands find it by SLURM_CONF."""
    directory = tmp_path_factory.mktemp("cluster")
    os.environ["VCLUSTER_DIR"], os.environ["SLURM_CONF"] = str(directory), str(directory / "slurm.conf")
    try:
        subprocess.run(["bash", CLUSTER, "up", "2"], check=True, timeout=600)
        yield directory
    finally:
        subprocess.run(["bash", CLUSTER, "down"], timeout=120)
        del os.environ["VCLUSTER_DIR"], os.environ["SLURM_CONF"]


def slurm(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def submit(runs: Path, *words: str, flags: tuple[str, ...] = ()) -> str:
    """Submits a sweep as a user does. Returns what the submitting job said, once it has ended."""
    log = runs / f"submit-{time.time_ns()}.log"
    slurm("sbatch", "--wait", f"--output={log}", *flags, "slurm/sweep.sh", *WORDS, *words, "--runs", str(runs))
    return log.read_text()


def jobs() -> list[str]:
    return slurm("squeue", "--noheader", "--array", "--format=%i %j %T %N").splitlines()


def wait_until(condition: Callable[[], object], timeout_s: float, what: Callable[[], str] = str) -> None:
    end = time.time() + timeout_s
    while not condition():
        assert time.time() < end, what()
        time.sleep(0.5)


def logs(root: Path) -> str:
    """What went wrong, for a failing test."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted((root / "slurm").glob("*.log")))


def ended(root: Path, timeout_s: float = 600) -> None:
    wait_until(lambda: not jobs(), timeout_s, lambda: "\n".join(jobs()) + logs(root))


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return (
        [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def reached(root: Path, run_id: str, step: int) -> Callable[[], bool]:
    return lambda: max(steps_of(root / run_id), default=0) >= step


def complete(root: Path) -> None:
    """All runs have finished, with every step once."""
    runs = sorted(path.parent for path in root.glob("*/result.json"))
    assert [run.name for run in runs] == ["r1-b16-s0", "r1-b16-s1", "r8-b16-s0", "r8-b16-s1"], logs(root)
    for run in runs:
        assert json.loads((run / "result.json").read_text())["status"] == "finished", logs(root)
        assert steps_of(run) == list(range(1, STEPS + 1))
        assert not (run / "checkpoint").exists()


def array_of(said: str) -> str:
    found = re.search(r"submitted array (\d+) of 2 tasks", said)
    assert found, said
    return found[1]


def test_a_sweep_over_two_nodes_through_time_limit_and_kill_of_the_driver(cluster, tmp_path):
    """Two submissions at once; then the signal ahead of the time limit for one task, kill -9 of the driver of the other."""
    root = tmp_path / "low_rank"
    other = ["sbatch", "--wait", f"--output={tmp_path}/other.log", "slurm/sweep.sh", *WORDS, "--runs", str(tmp_path)]
    first = subprocess.Popen(other, cwd=ROOT, stdout=subprocess.DEVNULL)
    said = submit(tmp_path)
    assert first.wait(120) == 0
    both = said + (tmp_path / "other.log").read_text()
    assert both.count("submitted array") == 1 and "4 runs: 4 queued or running" in both, both
    array = re.search(r"submitted array (\d+)", both)[1]  # type: ignore[index]
    wait_until(lambda: reached(root, "r1-b16-s0", 6)() and reached(root, "r8-b16-s0", 6)(), 400, lambda: logs(root))
    where = {job.split()[0]: job.split()[3] for job in jobs() if " RUNNING " in job}
    assert {where[f"{array}_0"], where[f"{array}_1"]} == {"vn1", "vn2"}
    slurm("scancel", "--signal=USR2", "--batch", f"{array}_0")
    wait_until(
        lambda: f"{array}_0" not in [job.split()[0] for job in jobs() if " RUNNING " in job], 100, lambda: logs(root)
    )
    ended(root)
    complete(root)
    assert "attempt 0 on vn" in (root / "slurm" / f"{array}_0.log").read_text()
    assert len((root / ".r1-b16-s0.attempts").read_text().splitlines()) == 2
    assert (root / "report" / "index.html").exists()
    results = {path: path.read_bytes() for path in root.glob("*/result.json")}
    assert "4 runs: 4 finished" in submit(tmp_path)
    assert results == {path: path.read_bytes() for path in root.glob("*/result.json")}
