"""Which process writes a run, the state of every run, and the assignment of runs to Slurm tasks.

No Slurm, no Ray.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, rankrl, runs_of
from records import record

from rankrl.cli import main
from rankrl.recipe.load import load_scale
from rankrl.report.ledger import attempts_file, ledger, living_owner, write_plan
from rankrl.sweep import owner
from rankrl.sweep.tasks import deal, left, sbatch_options

WORDS = ("ranks=[1,2,8]", "seeds=[0,1]", "steps=50")


def test_runs_are_dealt_out_evenly_and_within_the_array_limit():
    runs = list("abcdefg")
    assert deal(runs, 1, 1001) == [["a"], ["b"], ["c"], ["d"], ["e"], ["f"], ["g"]]
    assert deal(runs, 3, 1001) == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert deal(runs, 1, 2) == [["a", "b", "c"], ["d", "e", "f", "g"]]
    assert deal([], 3, 2) == []


def test_options_of_the_array(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    assert sbatch_options(load_scale("nano"), 12) == (
        ["--array=0-11", "--nodes=1", "--ntasks-per-node=1", "--signal=B:USR2@120"],
        [],
    )
    slurm = {"gpus_per_node": 4, "tasks_at_once": 3, "time": "1-00:00:00", "flags": ["--qos=long"]}
    monkeypatch.setenv("SLURM_JOB_PARTITION", "h100")
    array, report = sbatch_options(load_scale("qwen3-8b", {"slurm": slurm}), 5)
    assert array == [
        "--array=0-4%3",
        "--nodes=2",  # 4 policy and 2 value workers and 2 engines, 4 GPUs a node
        "--ntasks-per-node=1",
        "--signal=B:USR2@900",
        "--exclusive",
        "--partition=h100",
        "--time=1-00:00:00",
        "--gpus-per-node=4",
        "--cpus-per-task=64",
        "--qos=long",
    ]
    assert report == ["--partition=h100"]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("runs_per_task", 0, "at least 1"),
        ("gpus_per_node", -1, "at least 0"),
        ("stop_ahead_s", 10, "at least 60"),
        ("time", "43200", "DAYS-HOURS"),  # what YAML makes of 12:00:00
        ("flags", ["qos=long"], "flags of sbatch"),
    ],
)
def test_a_wrong_slurm_setting_is_refused(key, value, allowed):
    with pytest.raises(ValueError, match=f"slurm.{key}: got .*{allowed}"):
        load_scale("nano", {"slurm": {key: value}})


def write_run(directory: Path, steps: int = 0, attempts: int = 1, **result) -> Path:
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1, "step_s": 2.0}) + "\n" for i in range(steps))
    )
    attempts_file(directory).write_text("{}\n" * attempts)
    if result:
        (directory / "result.json").write_text(json.dumps(record(**result, steps=steps)))
    return directory


def test_every_state_of_a_run(tmp_path):
    root, runs = tmp_path / "low_rank", runs_of("low_rank", *WORDS)
    write_plan(root, runs)
    write_run(root / "r1-b16-s0", 50, status="finished")
    write_run(root / "r1-b16-s1", 7, status="diverged", error="Diverged: step 7: policy_loss is nan")
    write_run(root / "r2-b16-s0", 9, status="failed", error="SyncError: ...")
    write_run(root / "r2-b16-s1", 20, attempts=2)
    stopped = write_run(root / "r8-b16-s0", 10)
    (stopped / "checkpoint").mkdir()
    (stopped / "checkpoint" / "state.pt").touch()
    with (root / "r2-b16-s1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "st')  # as seen in the middle of a write
    with owner.owned(root, "r2-b16-s1"):
        seen = [(e.run_id, e.state, e.step, e.attempts, e.eta_s, e.note) for e in ledger(root)]
    assert seen == [
        ("r1-b16-s0", "finished", 50, 1, None, ""),
        ("r1-b16-s1", "diverged", 7, 1, None, "Diverged: step 7: policy_loss is nan"),
        ("r2-b16-s0", "failed", 9, 1, None, "SyncError: ..."),
        ("r2-b16-s1", "running", 20, 2, 60.0, socket.gethostname()),
        ("r8-b16-s0", "stopped", 10, 1, None, "resumes at its checkpoint"),
        ("r8-b16-s1", "planned", 0, 0, None, ""),
    ]
    todo, told = left(runs, root)
    assert [run.run_id for run in todo] == ["r2-b16-s0", "r2-b16-s1", "r8-b16-s0", "r8-b16-s1"]
    assert told == "6 runs: 2 finished, 4 to do"
    shown = rankrl("status", str(tmp_path))
    assert (
        shown.returncode == 0
        and "low_rank: 6 runs, 1 finished, 1 diverged, 1 failed, 2 stopped, 1 planned" in shown.stdout
    )
    assert json.loads(rankrl("status", str(root), "--json").stdout)["low_rank"][5]["state"] == "planned"


def test_slurm_that_does_not_answer(tmp_path, monkeypatch, capsys):
    """Nothing is submitted, since jobs that wait would be submitted twice. `rankrl status` still
    shows what is known."""
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    root, runs = tmp_path / "low_rank", runs_of("low_rank", *WORDS)
    write_plan(root, runs)
    (root / "slurm").mkdir()
    (root / "slurm" / "7.tasks").write_text("r1-b16-s0\n")
    with pytest.raises(ValueError, match=r"squeue says .*Unable to contact"):
        left(runs, root)
    assert {entry.state for entry in ledger(root)} == {"planned"}
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_status_of_nothing_is_refused(tmp_path):
    shown = rankrl("status", str(tmp_path))
    assert shown.returncode == 2 and "allowed: a directory with a sweep" in shown.stderr


@pytest.mark.slow
def test_a_sweep_with_nothing_left_gives_no_tasks(tmp_path):
    words = ["recipes/low_rank.yaml", "ranks=[1]", "seeds=[0,1]", "steps=50", "--runs", str(tmp_path)]
    first = rankrl("tasks", *words)
    assert first.stdout.splitlines()[0] == str(tmp_path / "low_rank")
    assert first.stdout.splitlines()[3:] == ["r1-b16-s0,r1-b16-s1"]  # 8 runs a task at nano
    for seed in (0, 1):
        write_run(tmp_path / "low_rank" / f"r1-b16-s{seed}", 50, status="finished")
    second = rankrl("tasks", *words)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "2 runs: 2 finished\n")


def test_a_second_writer_is_told_who_holds_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with (
        owner.owned(tmp_path, "r1"),
        pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .* \(Slurm job 12_3\)"),
        owner.owned(tmp_path, "r1"),
    ):
        pass
    with owner.owned(tmp_path, "r1"):
        pass


def other_node(directory: Path, job: str | None = None) -> Path:
    path = owner.lock_file(directory, "r1")
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": job}))
    return path


def test_a_holder_on_another_node_counts_while_it_beats(tmp_path, monkeypatch):
    """This matters on a file system whose locks hold on one node only."""
    monkeypatch.setattr(owner, "BEAT_S", 0.5)
    path, left = other_node(tmp_path), threading.Event()
    threading.Thread(target=owner._beat, args=(path, left)).start()
    with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), owner.owned(tmp_path, "r1"):
        pass
    left.set()
    with owner.owned(tmp_path, "r1"):  # it has stopped beating
        assert owner.read_owner(path) == owner.me()
    assert owner.read_owner(path) is None


def test_a_holder_that_has_long_been_silent_is_not_waited_for(tmp_path, monkeypatch):
    """An earlier attempt of the same task may still run on a node that Slurm has lost. Only a
    missing heartbeat shows that it has ended."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(owner, "BEAT_S", 0.5)
    path, left = other_node(tmp_path, job="7"), threading.Event()
    threading.Thread(target=owner._beat, args=(path, left)).start()
    with pytest.raises(owner.InUse, match="Slurm job 7"), owner.owned(tmp_path, "r1"):
        pass
    left.set()
    monkeypatch.setattr(owner, "BEAT_S", 1000.0)
    os.utime(path, (1, 1))
    with owner.owned(tmp_path, "r1"):
        assert owner.read_owner(path).host == socket.gethostname()


def test_a_holder_whose_task_slurm_has_ended_does_not_live(tmp_path):
    path = other_node(tmp_path, job="8_0")
    assert living_owner(path, {"8_0", "8_1"})["job"] == "8_0"
    assert living_owner(path, {"8_1"}) is None
    assert living_owner(path)["host"] == "elsewhere"  # Slurm was not asked
    assert living_owner(other_node(tmp_path, job="9"), set())["job"] == "9"  # a job that is no array's task


def test_a_lock_whose_number_is_now_another_process_does_not_count(tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"])
    path = owner.lock_file(tmp_path, "r1")
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": sleeper.pid, "job": None}))
    assert living_owner(path) is None
    sleeper.kill()


@pytest.mark.parametrize(
    ("runs", "word"),
    [
        ({"a": ("finished", "old"), "b": ("finished", "new")}, "ended"),
        ({"a": ("finished", "old"), "b": ("failed", "new")}, "ended"),
        ({"a": ("finished", "old"), "b": ("failed", "old")}, "nothing"),  # tried again, and died before its end
        ({"a": ("failed", "new"), "b": (None, None)}, "nothing"),
        ({"a": ("diverged", "new"), "b": (None, None)}, "saved"),
        ({"a": ("failed", "old"), "b": (None, "new")}, "saved"),
        ({"a": (None, "old"), "b": (None, None)}, "nothing"),
    ],
)
def test_what_an_attempt_came_to(tmp_path, capsys, runs, word):
    begun = tmp_path / "begun"
    begun.touch()
    os.utime(begun, (1000, 1000))
    for run_id, (status, when) in runs.items():
        file = tmp_path / run_id / ("result.json" if status else "checkpoint/state.pt")
        if when:
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(record(status or "failed")))
            os.utime(file, (1001, 1001) if when == "new" else (999, 999))
    assert main(["outcome", str(tmp_path), ",".join(runs), str(begun)]) == 0
    assert capsys.readouterr().out == word + "\n"


def stubs(directory: Path, **bodies: str) -> str:
    """Writes bash scripts that replace commands. Returns a PATH on which they come first."""
    for name, body in bodies.items():
        (directory / name).write_text(f"#!/bin/bash\n{body}\n")
        (directory / name).chmod(0o755)
    return f"{directory}:{Path(sys.executable).parent}:/usr/bin:/bin"


@pytest.mark.slow
def test_which_attempts_are_requeued(tmp_path):
    """After three attempts in a row without progress, none is requeued. Preempted and cancelled
    ones are left to Slurm and do not count."""
    root, clone = tmp_path / "sweep", tmp_path / "clone"  # a clone without a .venv, so that the stubs come first
    (root / "slurm").mkdir(parents=True)
    (root / "slurm" / "7.tasks").write_text("r1-b16-s0\n")
    clone.mkdir()
    path = stubs(
        tmp_path,
        srun='eval "$SAVES"; exit "$CODE"',
        squeue='[[ $* == *%T* ]] && echo "$STATE"',
        scontrol='echo "$*" >>"$SAID"',
        rankrl=f'exec {sys.executable} -m rankrl "$@"',
    )
    job = {"SLURM_SUBMIT_DIR": str(clone), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "9"}
    node = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "vn1", "SAID": str(tmp_path / "said"), "PATH": path}
    run = root / "r1-b16-s0"
    saves = f"sleep 0.01; mkdir -p {run}/checkpoint; touch {run}/checkpoint/state.pt"
    finishes = f"sleep 0.01; mkdir -p {run}; echo '{json.dumps(record('finished'))}' >{run}/result.json"

    def requeued(code: int, does: str = ":", state: str = "RUNNING") -> bool:
        Path(node["SAID"]).write_text("")
        words = ["bash", ROOT / "slurm" / "sweep.sh", str(root), "recipe.yaml"]
        happens = {"CODE": str(code), "SAVES": does, "STATE": state, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env={**job, **node, **happens}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return Path(node["SAID"]).read_text() == "requeue 7_0\n"

    assert [requeued(137), requeued(75)] == [True, True]
    assert not requeued(143, state="COMPLETING")
    assert requeued(75, saves)  # progress starts the count again
    assert [requeued(1), requeued(137), requeued(75)] == [True, True, False]
    assert requeued(75, saves)
    assert not requeued(2)
    assert not requeued(0, finishes)


def test_what_is_inherited_by_the_array(tmp_path):
    """The array does not inherit the submitting job's memory, CPUs and restarts. It does inherit
    its environment, whatever the site exports by default."""
    path = stubs(
        tmp_path,
        sbatch='env | grep -E "^(SLURM|SRUN)" | sort >>"$SAID"; echo "$*" >>"$SAID"; echo "7;cluster"',
        scontrol='if [[ $1 == release ]]; then echo "scontrol $*" >>"$SAID"; fi',
        squeue="",
    )
    job = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "3",
        "SLURM_JOB_PARTITION": "h100",
        "SLURM_MEM_PER_CPU": "1000",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_RESTART_COUNT": "1",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_CONF": "/etc/slurm.conf",
    }
    words = ["recipes/low_rank.yaml", "ranks=[1]", "seeds=[0]", "--runs", str(tmp_path / "my runs")]
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "sweep.sh", *words],
        env={**job, "PATH": path, "SAID": str(tmp_path / "said")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "said").read_text().splitlines()
    inherited = ["SLURM_CONF=/etc/slurm.conf", "SLURM_EXPORT_ENV=ALL"]
    assert told[:2] == inherited and told[4:6] == inherited
    assert "--export=ALL" in told[2] and "--partition=h100" in told[2] and told[3] == "scontrol release 7"
    assert f"rankrl report {tmp_path}/my\\ runs/low_rank" in told[6] and "--partition=h100" in told[6]
    assert (tmp_path / "my runs" / "low_rank" / "slurm" / "7.tasks").read_text() == "r1-b16-s0\n"
