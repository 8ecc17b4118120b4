"""Ray's start: the cluster that is joined, if any, and a machine too busy for Ray's patience."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rankrl.doctor import machine
from rankrl.ppo.cluster import START_WAIT_S
from rankrl.ppo.guardian import marked
from rankrl.ppo.ray_environment import FOREIGN, STEP_ADDRESS, drop_left_over, left_over, step_address

ROOT = Path(__file__).resolve().parents[1]
SLOW_HELPERS = """
import os, sys, time
from pathlib import Path

for name in ("dashboard/agent.py", "runtime_env/agent/main.py"):
    first = Path(os.environ["STARTED"]) / name.replace("/", "-")
    if any(word.endswith(name) for word in sys.orig_argv) and not first.exists():
        first.touch()
        time.sleep(20)  # Ray waits 15 s for them
"""
"""A sitecustomize that makes Ray's helpers start as on a busy machine, the first time only."""
STARTS = """
import os, psutil
from rankrl.sweep.local import prepare_process

prepare_process(2)
import ray

address = ray.get_runtime_context().gcs_address
seen = ray.get(ray.remote(lambda: os.environ.get("RAY_ADDRESS")).remote())
names = [process.name() for process in psutil.Process().children(recursive=True)]
print(f"address {address}, RAY_ADDRESS {seen}, {names.count('raylet')} raylets, {names.count('gcs_server')} heads")
"""


def test_only_the_step_of_this_slurm_job_joins():
    joined = {STEP_ADDRESS: "9@10.0.0.1:20009", "SLURM_JOB_ID": "9"}
    assert step_address(joined) == "10.0.0.1:20009" and not left_over(joined)
    for stale in ({STEP_ADDRESS: "9@10.0.0.1:20009"}, {**joined, "SLURM_JOB_ID": "10"}, {STEP_ADDRESS: "@10.0.0.1:1"}):
        assert step_address(stale) is None and left_over(stale) == [STEP_ADDRESS]
    assert step_address({"RAY_ADDRESS": "auto", "SLURM_JOB_ID": "9"}) is None


def test_what_is_left_over_is_dropped_and_named():
    environment = {"RAY_ADDRESS": "http://127.0.0.1:8265", "RAY_CLIENT_MODE": "0", "RAY_TMPDIR": "/tmp/a"}
    assert drop_left_over(environment) == ["RAY_ADDRESS"]
    assert environment == {"RAY_CLIENT_MODE": "0", "RAY_TMPDIR": "/tmp/a"} and not drop_left_over(environment)


def test_the_doctor_names_what_is_left_over(monkeypatch):
    for name in (*FOREIGN, STEP_ADDRESS):
        monkeypatch.delenv(name, raising=False)
    assert machine.ray_environment().level == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert str(machine.ray_environment()).startswith("warn  Ray          RAY_ADDRESS in the environment: ignored")
    assert machine.ray_environment().fix == "unset RAY_ADDRESS"


def test_a_task_of_two_nodes_joins_its_own_cluster_alone(tmp_path):
    """The task runs under bash with stubs for Slurm's commands."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "7.tasks").write_text("r1-b16-s0\n")
    bodies = {"srun": 'env >"$SAID.env"; echo "$*" >"$SAID"; exit 2', "scontrol": "echo vn1", "getent": "echo 10.0.0.1"}
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    node = {"SLURM_JOB_ID": "9", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "vn[1-2]"}
    left = dict.fromkeys((*FOREIGN, STEP_ADDRESS), "10.9.9.9:6379")
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SAID": str(tmp_path / "said")}
    words = ["bash", ROOT / "slurm" / "sweep.sh", str(tmp_path), "recipe.yaml"]
    done = subprocess.run(words, env={**job, **node, **left, **path}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"-- env {STEP_ADDRESS}=9@10.0.0.1:20009 rankrl run" in (tmp_path / "said").read_text()
    assert re.findall(r"warning: (\w+) in the environment: ignored", done.stdout) == [*FOREIGN]
    exported = {line.partition("=")[0] for line in (tmp_path / "said.env").read_text().splitlines()}
    assert "RAY_AUTH_TOKEN" in exported and not exported & {*FOREIGN}


@pytest.mark.pipeline
def test_ray_starts_at_the_second_try_and_joins_nobody(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_HELPERS)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    left = {"RAY_ADDRESS": "http://127.0.0.1:8265", STEP_ADDRESS: "9@10.0.0.1:20009"}
    environment = {**os.environ, **left, "PYTHONPATH": path, "STARTED": str(tmp_path), "SLURM_JOB_ID": "10"}
    environment[START_WAIT_S] = "30"  # the first try needs all of it
    done = subprocess.run([sys.executable, "-c", STARTS], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert f"warning: RAY_ADDRESS, {STEP_ADDRESS} in the environment: ignored" in said[0]
    assert "Ray did not start (Exception: The current node timed out during startup" in said[1]
    assert re.fullmatch(r"address 127.0.0.1:\d+, RAY_ADDRESS None, 1 raylets, 1 heads", said[2]), said
    assert len(said) == 3 and "Traceback" not in done.stderr
    assert not [p for p in marked(str(tmp_path), "STARTED") if p.name() in ("raylet", "gcs_server")]


@pytest.mark.slow
def test_ray_that_does_not_start_twice_is_one_line(tmp_path):
    """The directory is too long a name for Ray's sockets."""
    deep = tmp_path / ("d" * 100)
    words = ["sweep", "recipes/low_rank.yaml", "ranks=[1]", "seeds=[0]", "steps=1", "--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(deep)}
    done = subprocess.run(
        [sys.executable, "-m", "rankrl", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr  # not 2, which Slurm's task takes for wrong words
    assert "Ray did not start (OSError: validate_socket_filename failed" in done.stdout
    assert re.search(
        r"^rankrl: Ray: did not start on this machine, tried twice \(OSError: [^\n]*logs\n$", done.stderr, re.M
    )
    assert "Traceback" not in done.stderr and f"{deep}/ray/session_latest/logs" in done.stderr
