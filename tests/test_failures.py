"""What a run that failed or diverged leaves, and which of the two it is. No Ray is started."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import runs_of

REMOTE = """Traceback (most recent call last):
  File "policy.py", line 12, in fit
RuntimeError: shapes differ"""


@pytest.fixture
def record(stack, tmp_path):
    """A run directory of four attempted steps."""
    from rankrl.ppo.records import Record

    return Record(tmp_path / "r1-b16-s3", runs_of("demo", "ranks=[1]", "seeds=[3]")[0])


def state(step: int, weight: float = 0.5) -> dict:
    import torch

    return {"step": step, "policy": [{"weights": {"A": torch.tensor([weight])}}]}


def files(record) -> list[str]:
    record.wait_for_checkpoint()
    return sorted(path.name for path in record.checkpoint_dir.iterdir())


def test_a_checkpoint_is_dropped_only_once_a_step_has_proved_the_next(record):
    record.save_checkpoint(state(3))
    assert files(record) == ["state.pt", "step"]
    record.save_checkpoint(state(6))
    assert files(record) == ["before.pt", "state.pt", "step"]
    record.prove_checkpoint()
    assert files(record) == ["state.pt", "step"] and record.load_checkpoint()["step"] == 6


@pytest.mark.parametrize(
    ("saved", "finite_steps", "kept"),
    [
        ([state_of := (3, 0.5), (6, 0.5)], 6, 6),
        ([state_of, (6, 0.5)], 5, 3),  # the policy of step 6 has diverged
        ([state_of, (6, float("nan"))], 6, 3),
        ([state_of, (6, float("inf"))], 6, 3),
        ([state_of], 2, None),
        ([(3, float("nan"))], 3, None),
        ([], 0, None),
    ],
)
def test_the_last_finite_checkpoint_is_kept(record, saved, finite_steps, kept):
    for step, weight in saved:
        record.save_checkpoint(state(step, weight))
    assert record.keep_checkpoint_until(finite_steps) == (kept is not None)
    if kept is None:
        assert not record.checkpoint_dir.exists()
    else:
        assert files(record) == ["state.pt", "step"]
        assert record.load_checkpoint()["step"] == record.saved_step() == kept


def test_a_run_killed_between_two_names_goes_on_from_the_checkpoint_before(record):
    record.save_checkpoint(state(3))
    record.save_checkpoint(state(6))
    record.wait_for_checkpoint()
    (record.checkpoint_dir / "state.pt").unlink()
    assert record.load_checkpoint()["step"] == 3


@pytest.mark.parametrize(("status", "kept"), [("finished", False), ("diverged", True), ("failed", True)])
def test_only_a_finished_run_loses_its_checkpoint(record, status, kept):
    from rankrl.report.result import Result

    record.save_checkpoint(state(3))
    record.finish(Result.of(record.run, status, 0.25, None, None, 1024, 4, 1.0, record.run.trainable_params))
    assert record.checkpoint_dir.exists() == kept
    assert json.loads((record.dir / "result.json").read_text())["status"] == status


def remote(cause: Exception) -> Exception:
    """An error that was raised in a worker, as Ray raises it here."""
    from ray.exceptions import RayTaskError

    return RayTaskError("fit", REMOTE, cause, "ray::PolicyWorker.fit", 4711, "10.0.0.7").as_instanceof_cause()


def endings() -> dict[str, list[Exception]]:
    import torch
    from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError

    from rankrl.ppo.canary import SyncError
    from rankrl.ppo.status import Diverged

    memory = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    return {
        "diverged": [Diverged("step 7: policy_loss is nan", 6)],
        "failed": [
            *map(remote, [*memory, AssertionError("rank"), RuntimeError("shapes differ")]),
            *memory,
            ActorDiedError(),
            NodeDiedError("node 10.0.0.7"),
            OutOfMemoryError("killed"),
            SyncError("adapter sync: the rollout engine acts with the base model"),
            OSError(28, "No space left on device"),
            AssertionError(),
            ValueError("checkpoint: got the state of 2 workers, but 1 are running"),
        ],
    }


def test_divergence_is_an_outcome_and_all_else_a_failure(record):
    from rankrl.sweep.bench import Bench

    (record.dir / "metrics.jsonl").write_text('{"step": 4, "tokens_total": 900}\n')
    for status, errors in endings().items():
        for error in errors:
            result = Bench._failure(SimpleNamespace(_base=None), record, error, 0.0)
            assert (result.status, result.steps, result.gain) == (status, 4, None), error


def test_a_lost_cluster_ends_no_run(record):
    """The command exits with 75 and goes on later, so there must be no result."""
    from rankrl.sweep.bench import Bench, ClusterLost

    def lost():
        raise ClusterLost("2 GPUs are left")

    bench = SimpleNamespace(services=None, _supplies=lost, services_per_run=False)
    with pytest.raises(ClusterLost):
        Bench._attempts(bench, record.run, record, 2, True)
    assert not (record.dir / "result.json").exists() and not (record.dir / "error.txt").exists()


def test_steps_that_were_finite_are_counted(stack):
    from rankrl.ppo.status import Diverged, check_finite

    sound = {"policy_loss": 0.1, "critic_loss": 0.2, "actor_grad_norm": 1.0, "actor_weight_max": 0.5}
    check_finite(4, sound)
    check_finite(0, {})  # while only the critic learns
    for name in ("policy_loss", "critic_loss", "actor_grad_norm", "critic_grad_norm", "actor_weight_max"):
        with pytest.raises(Diverged, match=f"step 5: {name} is inf") as caught:
            check_finite(4, {**sound, name: float("inf")})
        assert caught.value.finite_steps == 4


@pytest.mark.parametrize(("moved", "kind"), [(1.0, "SyncError"), (9.0, "Diverged")])
def test_an_alarm_of_the_canary_is_a_divergence_only_of_a_policy_that_has_blown_up(stack, moved, kind):
    import numpy as np

    from rankrl.ppo import canary, loop, status
    from rankrl.ppo.experience import Logprobs

    trainer = np.full(200, -2.0)
    wrong = Logprobs(engine=trainer + 0.5, trainer=trainer, base=trainer - moved, previous=trainer)
    assert wrong.distance() == moved
    with pytest.raises((canary.SyncError, status.Diverged)) as caught:
        loop.RunTrainer.check_engine(SimpleNamespace(canary=canary.Canary(0.05)), 6, wrong)
    assert type(caught.value).__name__ == kind
    assert getattr(caught.value, "finite_steps", 5) == 5


def failure(record, status: str = "failed"):
    from rankrl.report.result import Result

    error = "RuntimeError: shapes differ"
    return Result.of(record.run, status, 0.25, None, None, 900, 4, 1.0, record.run.trainable_params, error)


def test_error_txt_has_the_workers_traceback_and_the_ends_of_the_logs(record, tmp_path, monkeypatch):
    from rankrl.sweep import error_text

    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "worker-ab-01-4711.err").write_text("early\n" + "x" * 9_000 + "\n" + "late\n" * 500)
    (logs / "worker-ab-01-4711.out").touch()
    (logs / "worker-cd-01-9.err").write_text("another process\n")
    monkeypatch.setattr(error_text, "ray_logs", lambda: logs)
    monkeypatch.setattr(error_text, "SAID", ["12:00:00 services are up after 30 s"])
    try:
        raise remote(RuntimeError("shapes differ"))
    except RuntimeError as error:
        record.error(error_text.error_text(failure(record), error))
    text = (record.dir / "error.txt").read_text()
    assert text.startswith("r1-b16-s3 failed after step 4: RuntimeError: shapes differ\n")
    assert "ray::PolicyWorker.fit() (pid=4711, ip=10.0.0.7)" in text and "\x1b" not in text
    assert 'File "policy.py", line 12, in fit\nRuntimeError: shapes differ' in text
    assert "== last lines of the sweep ==\n12:00:00 services are up after 30 s\n" in text
    assert "== end of worker-ab-01-4711.err ==\nlate\n" in text and text.count("late") == 500
    assert "early" not in text and "4711.out" not in text and "another process" not in text


def test_error_txt_says_what_ray_knows_of_a_killed_worker(record):
    from ray.exceptions import ActorDiedError

    from rankrl.sweep.error_text import error_text

    error = ActorDiedError()
    error.error_msg = "pid: 4711\nip: 10.0.0.7\nThe process is killed by SIGKILL by OOM killer"
    text = error_text(failure(record), error)
    assert "ip: 10.0.0.7\nThe process is killed by SIGKILL by OOM killer" in text


def test_error_txt_is_bounded(record):
    from rankrl.report.model_text import shortened
    from rankrl.sweep.error_text import error_text

    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 6) == "abc\n[... 4 characters left out ...]\nhij"
    assert len(error_text(failure(record), RuntimeError("x" * 1_000_000))) < 60_000


def test_a_new_attempt_drops_the_error_of_the_last(record):
    record.error("of the last attempt\n")
    record.start(record.run.resolved(), 0)
    record.close()
    assert not (record.dir / "error.txt").exists()
    shutil.rmtree(record.dir)
