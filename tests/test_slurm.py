"""`sbatch slurm/sweep.sh` at scale=nano on a real Slurm cluster of two virtual nodes, under the
faults that end jobs on a cluster.

Every fault hits real processes: slurmd, raylets, drivers, workers. Killed services are mended
within a task, which knows nothing of Slurm: one_bench/test_packed_runs.py kills each kind.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, rankrl, shell

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(os.geteuid() != 0, reason="virtual nodes need root")]
CLUSTER = ROOT / "tests" / "virtual_cluster.sh"
SMALL_DISK = "small"
NANO = ["recipes/low_rank.yaml", "scale=nano", "checkpoint_every=4", "scale.sampling.eval_samples=1",
        "scale.placement.critic_per_node=0", "scale.slurm.cpus_per_node=2", "scale.slurm.runs_per_task=2",
        "scale.data.eval_items=64", "scale.sampling.base_samples=2"]  # fmt: skip
"""Policy and value in one process: a start takes three quarters of the time."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """The directory of a running cluster, with a small file system in it.

    Slurm's commands find the cluster by SLURM_CONF.
    """
    directory = tmp_path_factory.mktemp("cluster")
    small = directory / SMALL_DISK
    small.mkdir()
    environment = {"VCLUSTER_DIR": str(directory), "SLURM_CONF": str(directory / "slurm.conf")}
    with shell() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", small], check=True)
        try:
            subprocess.run(["bash", CLUSTER, "up", "2"], check=True, timeout=600)
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", small], check=True)
            subprocess.run(["bash", CLUSTER, "down"], timeout=120)


def slurm(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def submit(runs: Path, *words: str) -> str:
    """Submits a sweep as a user does. Returns the log of the submitting job once it has ended."""
    log = runs / f"submit-{time.time_ns()}.log"
    slurm("sbatch", "--wait", f"--output={log}", "slurm/sweep.sh", *NANO, *words, "--runs", str(runs))
    return log.read_text()


def array_of(said: str, tasks: int) -> str:
    found = re.search(rf"submitted array (\d+) of {tasks} tasks", said)
    assert found, said
    return found[1]


def jobs() -> dict[str, tuple[str, str]]:
    """Job or task -> (state, node) of every job that Slurm has not ended."""
    lines = slurm("squeue", "--noheader", "--array", "--format=%i|%T|%N").splitlines()
    return {job: (state, node) for job, state, node in (line.split("|") for line in lines)}


def state(task: str) -> str | None:
    return jobs().get(task, (None, ""))[0]


def logs(root: Path) -> str:
    """The ends of all Slurm logs of a sweep, shown when a test fails."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted((root / "slurm").glob("*.log")))


def wait_until(condition: Callable[[], object], root: Path, timeout_s: float = 300) -> None:
    end = time.time() + timeout_s
    while not condition():
        assert time.time() < end, f"{jobs()}\n{logs(root)}"
        time.sleep(0.5)


def ended(root: Path) -> None:
    wait_until(lambda: not jobs(), root, timeout_s=600)


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def trained(root: Path, run_id: str, step: int) -> None:
    """Waits until the run has done PPO step `step`."""
    wait_until(lambda: max(steps_of(root / run_id), default=0) >= step, root)


def processes(name: str, node: str) -> list[psutil.Process]:
    """Processes of a node whose title or command line contains `name`."""
    found = []
    for process in psutil.process_iter():
        try:
            if name in " ".join(process.cmdline()) and process.environ().get("SLURMD_NODENAME") == node:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(name: str, node: str) -> None:
    """Sends SIGKILL to the one process of that name on the node."""
    (victim,) = processes(name, node)
    victim.kill()


def comes_near_its_time_limit(task: str, node: str, root: Path) -> None:
    """Shortens the time limit and waits for the signal that Slurm sends 2 minutes before it.

    The task does not train in the meantime.
    """
    (driver,) = processes("bin/rankrl run", node)
    driver.suspend()
    minutes = int((time.time() - driver.create_time()) // 60) + 3
    slurm("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}")
    wait_until((root / "slurm" / f"{task}.stop").exists, root)
    driver.resume()


def complete(root: Path, run_ids: list[str], steps: int) -> None:
    """Asserts that all runs have finished, with every step once and no checkpoint, and are in the
    report."""
    runs = sorted(path.parent for path in root.glob("*/result.json"))
    assert [run.name for run in runs] == run_ids, logs(root)
    for run in runs:
        assert json.loads((run / "result.json").read_text())["status"] == "finished", logs(root)
        assert steps_of(run) == list(range(1, steps + 1))
        assert not (run / "checkpoint").exists()
    summary = json.loads((root / "report" / "summary.json").read_text())
    assert sum(row["n_seeds"] for row in summary["ranks"]) == len(run_ids)


def content(run: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file of a run."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def attempts(root: Path, run_id: str) -> list[int]:
    """The PPO step at which each attempt of a run began."""
    return [json.loads(line)["step"] for line in (root / f".{run_id}.attempts").read_text().splitlines()]


def goes_on(root: Path, run_id: str, attempt: int) -> None:
    """Waits until an attempt of a run has done three steps, so that it has saved at least once."""
    wait_until(lambda: (root / f".{run_id}.attempts").exists() and len(attempts(root, run_id)) >= attempt, root)
    trained(root, run_id, attempts(root, run_id)[-1] + 3)


def test_two_submissions_at_once_then_the_time_limit_and_kill_of_a_driver(cluster, tmp_path):
    """Two tasks run side by side on two nodes. One comes near its time limit; the driver of the
    other is killed."""
    root, words = tmp_path / "low_rank", ("ranks=[1,8]", "seeds=[0,1]", "steps=16")
    other = [
        "sbatch",
        "--wait",
        f"--output={tmp_path}/other.log",
        "slurm/sweep.sh",
        *NANO,
        *words,
        "--runs",
        str(tmp_path),
    ]
    first = subprocess.Popen(other, cwd=ROOT, stdout=subprocess.DEVNULL)
    said = submit(tmp_path, *words)
    assert first.wait(120) == 0
    both = said + (tmp_path / "other.log").read_text()
    array = array_of(both, tasks=2)
    assert both.count("submitted array") == 1 and "4 runs: 4 queued or running" in both, both
    for run_id in ("r1-b16-s0", "r8-b16-s0"):
        trained(root, run_id, 5)
    nodes = {task: node for task, (_, node) in jobs().items() if node}
    assert {nodes[f"{array}_0"], nodes[f"{array}_1"]} == {"vn1", "vn2"}
    kill("bin/rankrl run", nodes[f"{array}_1"])
    comes_near_its_time_limit(f"{array}_0", nodes[f"{array}_0"], root)
    wait_until(lambda: state(f"{array}_0") == "PENDING", root)
    slurm("scontrol", "update", f"JobId={array}_0", "TimeLimit=60")
    ended(root)
    complete(root, ["r1-b16-s0", "r1-b16-s1", "r8-b16-s0", "r8-b16-s1"], 16)
    assert "attempt 0 on vn" in (told := (root / "slurm" / f"{array}_0.log").read_text()) and "ended with 75" in told
    assert "ended with 137" in (root / "slurm" / f"{array}_1.log").read_text()
    for task in (0, 1):
        assert (root / "slurm" / f"{array}_{task}-attempt1.log").read_text()
    saved = attempts(root, "r1-b16-s0")[1]
    assert saved >= 5  # the step at the signal, not that of the last periodic checkpoint
    assert attempts(root, "r8-b16-s0")[1] % 4 == 0 and attempts(root, "r8-b16-s0")[1] >= 4
    before = [content(run) for run in sorted(root.glob("r*-b16-s?"))]
    assert "4 runs: 4 finished" in submit(tmp_path, *words)
    ended(root)
    assert before == [content(run) for run in sorted(root.glob("r*-b16-s?"))]


def test_faults_one_after_the_other_leave_a_finished_run_alone(cluster):
    """All faults hit the second of two runs: a killed policy worker, preemption, the loss of a node
    with its slurmd, scancel, and a disk that is full while a checkpoint is written.

    On the full disk the run fails with one line. Once there is room, the next submission resumes it
    from its last checkpoint.
    """
    runs = cluster / SMALL_DISK
    root, words = (
        runs / "low_rank",
        ("ranks=[1,8]", "seeds=[0]", "steps=40", "checkpoint_every=2", "parallel_runs=1"),
    )
    array = array_of(submit(runs, *words), tasks=1)
    goes_on(root, "r8-b16-s0", attempt=1)
    finished = content(root / "r1-b16-s0")
    assert "result.json" in finished
    node = jobs()[f"{array}_0"][1]

    kill("ray::TrainerWorker", node)
    goes_on(root, "r8-b16-s0", attempt=2)
    slurm("sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    goes_on(root, "r8-b16-s0", attempt=3)

    node = jobs()[f"{array}_0"][1]
    slurmds = psutil.process_iter(["name", "cmdline"])
    (slurmd,) = [p for p in slurmds if p.info["name"] == "slurmd" and p.info["cmdline"][-1] == node]
    slurmd.kill()  # its node goes down with it
    wait_until(lambda: state(f"{array}_0") == "PENDING" or jobs()[f"{array}_0"][1] != node, root)
    subprocess.run(["bash", CLUSTER, "node", node.removeprefix("vn")], check=True, timeout=60)
    goes_on(root, "r8-b16-s0", attempt=4)

    node = jobs()[f"{array}_0"][1]
    slurm("scancel", array)
    wait_until(lambda: not any(job.startswith(array) for job in jobs()), root)
    wait_until(lambda: not processes("ray", node) and not processes("bin/rankrl run", node), root, timeout_s=30)
    time.sleep(15)  # a requeued task would wait no longer than that on this cluster
    assert not [job for job in jobs() if job.startswith(array)]
    assert "low_rank: 2 runs, 1 finished, 1 stopped" in rankrl("status", str(root)).stdout

    array = array_of(submit(runs, *words), tasks=1)
    assert (root / "slurm" / f"{array}.tasks").read_text() == "r8-b16-s0\n"
    goes_on(root, "r8-b16-s0", attempt=5)
    ballast = runs / "ballast"
    free = os.statvfs(runs).f_bavail * os.statvfs(runs).f_frsize
    # room for lines, not for a checkpoint
    subprocess.run(["fallocate", f"--length={free - 120_000}", ballast], check=True)
    ended(root)
    result = json.loads((root / "r8-b16-s0" / "result.json").read_text())
    assert result["status"] == "failed" and "No space left" in result["error"], result
    ballast.unlink()
    assert "2 runs: 1 finished, 1 to do" in submit(runs, *words)
    ended(root)
    complete(root, ["r1-b16-s0", "r8-b16-s0"], 40)
    assert content(root / "r1-b16-s0") == finished
    began = attempts(root, "r8-b16-s0")
    assert began == sorted(began) and len(began) == 6 and began[1] >= 2 and began[5] >= 4, began


def test_a_run_on_two_nodes_agrees_with_one_on_one_and_survives_the_loss_of_a_raylet(cluster, tmp_path, monkeypatch):
    """Policy and value workers on both nodes under ZeRO-3, an engine on each.

    The user's environment still names the clusters of other days.
    """
    monkeypatch.setenv("RAY_START_OPTIONS", "--num-gpus=2 --num-cpus=3")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setenv("RANKRL_RAY_ADDRESS", "1000@10.9.9.9:20000")
    words = ("ranks=[4]", "seeds=[0]", "steps=8", "checkpoint_every=2", f"scale.deepspeed={ROOT}/ds_configs/zero3.json",
             "scale.placement.engines=2", "scale.placement.micro_batch=32")  # fmt: skip
    root = tmp_path / "low_rank"
    array = array_of(submit(tmp_path, *words, "scale.placement.nodes=2"), tasks=1)
    trained(root, "r4-b16-s0", 3)
    training = max(
        root.glob(f"slurm/{array}_0-attempt*.log")
    ).read_text()  # on a busy machine the first may start no Ray
    assert re.search(r"policy on vn(1 vn2|2 vn1); engines on vn(1 vn2|2 vn1)", training), training
    assert "warning: RAY_ADDRESS in the environment: ignored" in (root / "slurm" / f"{array}_0.log").read_text()
    kill("raylet/raylet --raylet_socket_name", "vn2")
    ended(root)
    complete(root, ["r4-b16-s0"], 8)
    assert len(attempts(root, "r4-b16-s0")) >= 2

    alone = tmp_path / "one node"
    one = rankrl("sweep", *NANO, *words, "scale.placement.policy_per_node=2", "--runs", str(alone), timeout_s=400)
    assert one.returncode == 0, one.stdout + one.stderr
    two_nodes, one_node = (
        [json.loads(line) for line in (path / "r4-b16-s0" / "metrics.jsonl").read_text().splitlines()]
        for path in (root, alone / "low_rank")
    )
    assert two_nodes[0]["accuracy"] == one_node[0]["accuracy"]
    for name in ("policy_loss", "value_loss", "grad_norm"):
        assert two_nodes[0][name] == pytest.approx(one_node[0][name], rel=1e-4, abs=1e-6)
    assert max(line["sync_gap_nats"] for line in two_nodes) < 0.01


def test_a_thousand_runs_in_one_array(cluster, tmp_path):
    words = ["ranks=[1,2,4,8]", f"seeds=[{','.join(map(str, range(250)))}]", "scale.slurm.runs_per_task=1",
             "scale.slurm.flags=[--begin=now+1hour]"]  # fmt: skip
    array = array_of(submit(tmp_path, *words), tasks=1000)
    waiting = [job for job in jobs() if job.startswith(f"{array}_")]
    assert len(waiting) == 1000
    shown = rankrl("status", str(tmp_path))
    assert "low_rank: 1000 runs, 1000 queued" in shown.stdout, shown.stderr
    assert "1000 runs: 1000 queued or running" in submit(tmp_path, *words)
    slurm("scancel", "--user=root")
    wait_until(lambda: not jobs(), tmp_path)
