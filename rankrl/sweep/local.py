"""Many runs on warm services, several at a time: what is finished is skipped, what broke is resumed."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rankrl.data.loading import load_items
from rankrl.recipe.estimate import MOST_PARALLEL, fitting_runs, gpu_room_bytes
from rankrl.recipe.plan import Run
from rankrl.recipe.scale import Execution
from rankrl.report.ledger import ENDED, write_plan
from rankrl.report.read import read_plan, read_result
from rankrl.report.resolved import versions_apart
from rankrl.sweep.identity import check_identity
from rankrl.sweep.measure_alike import check_measure, recorded_runs
from rankrl.sweep.owner import InUse, owned
from rankrl.sweep.progress import say
from rankrl.sweep.stages import keep_back, next_stage, staged

if TYPE_CHECKING:
    from rankrl.sweep.worker import Bench

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
    """Runs everything that is not finished. Returns 0, 75 if stopped on request, 1 if a run failed or diverged, or the records
    allow no report.

    Raises ValueError if a run directory holds another run under the same id.
    """
    root = directory / runs[0].sweep
    for run in runs:
        check_identity(root / run.run_id, run)
    with owned(root) if report else nullcontext():
        code = _sweep(runs, _stages(runs, root) if report else iter([runs]), directory, execution)
    if report and any(root.glob("*/result.json")):
        from rankrl.report.build import build, print_table

        try:
            for summary in build(root):
                print_table(summary)
        except ValueError as error:  # no run has a score, say: what became of the runs stays the outcome
            print(f"rankrl: no report: {error}", file=sys.stderr)
            return code or 1
    return code


def _stages(runs: list[Run], root: Path) -> Iterator[list[Run]]:
    """The runs of one stage after the other, until none is left or one has not ended. Without stages: all."""
    keep_back(runs, root)
    before = None
    while True:
        now, why = next_stage(runs, root) if staged(runs) else (runs, "")
        if why and now != before:
            say(why)
        if not now or now == before:
            return
        yield now
        before = now


def _sweep(runs: list[Run], stages: Iterator[list[Run]], directory: Path, execution: Execution) -> int:
    """Trains what each stage gives out of `runs`, all on one bench, which opens for the first that has something to do."""
    root = directory / runs[0].sweep

    def status(run: Run) -> str:
        return (read_result(root / run.run_id) or {}).get("status", "")

    given: set[str] = set()
    with ExitStack() as stack:
        bench = None
        for stage in stages:
            write_plan(root, stage)
            given |= {run.run_id for run in stage}
            todo = [run for run in stage if status(run) not in ENDED]
            say(f"{len(stage) - len(todo)} of {len(stage)} runs are finished, {len(todo)} to do")
            if not todo:
                continue
            if bench is None:
                left = [run for run in runs if status(run) not in ENDED]
                bench = stack.enter_context(_bench(left, directory, execution))
            if not _train(todo, bench):
                return STOPPED
    given |= read_plan(root).keys()  # stages of before
    return int(any(status(run) != "finished" for run in runs if run.run_id in given))


def _bench(runs: list[Run], directory: Path, execution: Execution) -> Bench:
    """A bench for as many of `runs` at once as this machine has room for.

    Raises ValueError, before anything is started, where model or data are missing, or not those of
    the sweep's recorded runs.
    """
    parallel_runs = min(execution.parallel_runs or default_parallel_runs(runs), len(runs))
    from rankrl.data.base_model import local_directory

    scale, recorded = runs[0].scale, recorded_runs(directory / runs[0].sweep)
    local_directory(scale.model)
    items = load_items(scale.data)
    check_measure(recorded, scale.data, items)
    prepare_process(scale.placement.gpus)
    from rankrl.ppo.records import versions
    from rankrl.sweep.worker import Bench

    if note := versions_apart(recorded.values(), versions()):
        say(f"recorded runs were made by other versions: {note}")
    return Bench(runs, directory, parallel_runs, execution.services == "per_run", items)


def _train(todo: list[Run], bench: Bench) -> bool:
    """False: stopped before all had ended."""
    from rankrl.sweep.packing import train_all
    from rankrl.sweep.worker import ClusterLost

    parallel_runs = min(bench.parallel_runs, len(todo))
    say(f"{parallel_runs} at a time")
    statuses: list[str] = []
    try:
        bench.base_samples()  # every run needs it
        for status in train_all(todo, bench, parallel_runs):
            statuses.append(status)
    except ClusterLost as error:  # on a new cluster the same command goes on
        say(f"stopping: a part of the cluster is gone: {error}")
        return False
    except ValueError as error:  # of one run, when the others have ended
        if "stopped" not in statuses and not isinstance(error, InUse):
            raise
        say(str(error))
        return False
    return "stopped" not in statuses


def default_parallel_runs(runs: list[Run]) -> int:
    """As many runs at once as keep this machine busy: MOST_PARALLEL with GPUs, whose engines gain most, else four for each core.

    Never more than leave room for their adapters and optimizers: a fifth of a GPU, or half of the free memory.
    """
    if Path("/dev/nvidiactl").exists():
        return fitting_runs(runs, MOST_PARALLEL, gpu_room_bytes(runs[0].scale))
    return fitting_runs(runs, 4 * (os.cpu_count() or 1), psutil.virtual_memory().available / 2)
