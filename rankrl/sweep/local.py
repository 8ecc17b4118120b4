"""Many runs on warm services, several at a time: what is finished is skipped, what broke is resumed."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil

from rankrl.recipe.estimate import MOST_PARALLEL, fitting_runs, gpu_room_bytes
from rankrl.recipe.plan import Run
from rankrl.recipe.scale import Execution
from rankrl.report.ledger import ENDED, write_plan
from rankrl.report.read import read_plan, read_result
from rankrl.sweep.identity import check_identity
from rankrl.sweep.owner import InUse, owned
from rankrl.sweep.progress import say
from rankrl.sweep.stages import keep_back, next_stage, staged

HERE = Execution()
STOPPED = 75  # EX_TEMPFAIL: stopped, on request or by the loss of nodes, and resumable


def prepare_process(gpus: int) -> None:
    """Before training: quiet libraries, Ray, the CPU stand-ins where there is no GPU.

    Ray starts before the heavy imports, not beside them: it forks, and the fork imports; were another thread in the middle of an
    import, it would wait for ever.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "RAY_ADDRESS" not in os.environ:  # a cluster of one machine: Ray listens on loopback alone, as it does on a Mac
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import warnings

    warnings.simplefilter("ignore")  # of libraries; rankrl reports by exceptions and printed lines
    from rankrl.ppo.cluster import start_ray

    start_ray(gpus)  # here, because Ray's processes die with the thread that started them
    _import_stack()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # last, because Ray and libraries set handlers of their own


def _import_stack() -> None:
    import torch

    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()
    import rankrl.sweep.worker  # noqa: F401

    for name in ("ray", "deepspeed", "DeepSpeed", "vllm", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)


def sweep(runs: list[Run], directory: Path, execution: Execution = HERE, report: bool = True) -> int:
    """Runs everything that is not finished. Returns 0, 75 if stopped on request, 1 if a run failed or diverged.

    Raises ValueError if a run directory holds another run under the same id.
    """
    root = directory / runs[0].sweep
    for run in runs:
        check_identity(root / run.run_id, run)
    with owned(root) if report else nullcontext():
        if report and staged(runs):
            code = _all_stages(runs, directory, execution)
        else:
            write_plan(root, runs)
            code = _sweep(runs, directory, execution)
    if report and any(root.glob("*/result.json")):
        from rankrl.report.build import build, print_table

        try:
            for summary in build(root):
                print_table(summary)
        except ValueError as error:  # no run has a score, say: why is told, and the runs' own failures stay the outcome
            say(f"no report: {error}")
            return code or 1
    return code


def _all_stages(runs: list[Run], directory: Path, execution: Execution) -> int:
    """Stage after stage, until none is left or one does not end. A run that failed in any of them makes the code 1."""
    root, before = directory / runs[0].sweep, None
    keep_back(runs, root)
    while True:
        now, why = next_stage(runs, root)
        if now != before:
            say(why)
        if not now or now == before:
            results = [read_result(root / name) for name in read_plan(root)]
            return int(any(result is None or result["status"] != "finished" for result in results))
        write_plan(root, now)
        if _sweep(now, directory, execution) == STOPPED:
            return STOPPED
        before = now


def _sweep(runs: list[Run], directory: Path, execution: Execution) -> int:
    results = {run.run_id: read_result(directory / run.sweep / run.run_id) for run in runs}
    todo = [run for run in runs if (results[run.run_id] or {}).get("status") not in ENDED]
    say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished, {len(todo)} to do")
    if not todo:
        return int(any(result["status"] != "finished" for result in results.values() if result))
    parallel_runs = min(execution.parallel_runs or default_parallel_runs(todo), len(todo))
    say(f"{parallel_runs} at a time")
    from rankrl.data.base_model import local_directory

    local_directory(runs[0].scale.model)  # a missing one is an error at once, not after Ray has started
    prepare_process(runs[0].scale.placement.gpus)
    from rankrl.sweep.pool import train_all
    from rankrl.sweep.worker import Bench, ClusterLost

    diverged = sum(result["status"] == "diverged" for result in results.values() if result)
    statuses: list[str] = []
    try:
        with Bench(todo, directory, parallel_runs, execution.services == "per_run") as bench:
            bench.base_samples()  # every run needs it
            for status in train_all(todo, bench, parallel_runs):
                statuses.append(status)
    except ClusterLost as error:  # on a new cluster the same command goes on
        say(f"stopping: a part of the cluster is gone: {error}")
        return STOPPED
    except ValueError as error:  # of one run, when the others have ended
        if "stopped" not in statuses and not isinstance(error, InUse):
            raise
        say(str(error))
        return STOPPED
    if "stopped" in statuses:
        return STOPPED
    return int(diverged > 0 or set(statuses) != {"finished"})


def default_parallel_runs(runs: list[Run]) -> int:
    """As many runs at once as keep this machine busy: MOST_PARALLEL with GPUs, whose engines gain most, else four for each core.

    Never more than leave room for their adapters and optimizers: a fifth of a GPU, or half of the free memory.
    """
    if Path("/dev/nvidiactl").exists():
        return fitting_runs(runs, MOST_PARALLEL, gpu_room_bytes(runs[0].scale))
    return fitting_runs(runs, 4 * (os.cpu_count() or 1), psutil.virtual_memory().available / 2)
