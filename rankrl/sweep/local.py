"""A sweep on this machine: runs trained several at a time, on services that stay up.

Finished runs are skipped, interrupted ones are resumed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rankrl.data.loading import load_items
from rankrl.data.ready import check_ready
from rankrl.ppo.ray_environment import drop_left_over, step_address
from rankrl.recipe.estimate import MOST_PARALLEL, fitting_runs, gpu_room_bytes
from rankrl.recipe.plan import Run, largest_served_rank, neediest
from rankrl.recipe.rank_table import serving_rank
from rankrl.recipe.require import require
from rankrl.recipe.scale import Execution
from rankrl.report.ledger import ENDED, write_plan
from rankrl.report.planned import read_plan
from rankrl.report.read import read_result
from rankrl.report.resolved import versions_apart
from rankrl.sweep.identity import check_identity
from rankrl.sweep.measure_alike import check_measure, recorded_runs
from rankrl.sweep.owner import InUse, owned
from rankrl.sweep.progress import say
from rankrl.sweep.stages import keep_back, next_stage, staged

if TYPE_CHECKING:
    from rankrl.sweep.bench import Bench

HERE = Execution()
STOPPED = 75  # EX_TEMPFAIL: stopped, on request or because nodes were lost, and resumable


def prepare_process(gpus: int, tell: Callable[[str], None] = say) -> None:
    """Prepares this process for training: quiet libraries, Ray, CPU stand-ins if there is no GPU.

    Warnings go to `tell`. Raises ConnectionError if Ray does not start.

    Ray starts before the heavy imports, not beside them: it forks, and the fork imports. If another
    thread were in the middle of an import, the fork would wait forever.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if left := drop_left_over(os.environ):
        tell(f"warning: {', '.join(left)} in the environment: ignored, for rankrl uses a Ray of its own")
    if not step_address(os.environ):  # a cluster of one machine: Ray listens on loopback alone, as it does on a Mac
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import warnings

    warnings.simplefilter("ignore")  # of libraries; rankrl reports by exceptions and printed lines
    from rankrl.ppo.cluster import start_ray

    start_ray(gpus, tell)  # here, because Ray's processes die with the thread that started them
    _import_stack()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # last, because Ray and libraries set handlers of their own


def _import_stack() -> None:
    import torch

    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()
    import rankrl.sweep.bench  # noqa: F401

    for name in ("ray", "deepspeed", "DeepSpeed", "vllm", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)


def sweep(runs: list[Run], directory: Path, execution: Execution = HERE, report: bool = True) -> int:
    """Trains every run that is not finished, then writes the report. Returns the exit code.

    The code is 0 if all finished, 75 if stopped on request or because nodes were lost, and 1 if a
    run failed or diverged, or if no report can be made of the records. Raises ValueError if a run
    directory holds another run under the same id.
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
        except ValueError as error:  # such as no run with a score: the exit code of the runs stands
            print(f"rankrl: no report: {error}", file=sys.stderr)
            return code or 1
    return code


def _stages(runs: list[Run], root: Path) -> Iterator[list[Run]]:
    """The runs of one stage after the other, until no stage is left or one does not end.

    Without stages, all runs are one stage.
    """
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
    """Trains the runs of each stage. Returns the exit code of the sweep.

    All use one bench, which is opened for the first stage that has something to do, unless the
    runs of every serving rank are to have their own.
    """
    root = directory / runs[0].sweep

    def status(run: Run) -> str:
        return (read_result(root / run.run_id) or {}).get("status", "")

    given: set[str] = set()
    refused: list[ValueError] = []
    with ExitStack() as stack:
        bench = None
        for stage in stages:
            write_plan(root, stage)
            given |= {run.run_id for run in stage}
            todo = [run for run in stage if status(run) not in ENDED]
            say(f"{len(stage) - len(todo)} of {len(stage)} runs are finished, {len(todo)} to do")
            if not todo:
                continue
            for group in by_serving_rank(todo) if execution.services == "by_rank" else [todo]:
                if bench is None or execution.services == "by_rank":
                    stack.close()
                    left = [run for run in runs if status(run) not in ENDED]
                    its = group if execution.services == "by_rank" else left
                    bench = stack.enter_context(bench_for(its, directory, execution))
                try:
                    if not _train(group, bench):
                        return STOPPED
                except ValueError as error:  # of one run: those of other groups do not depend on it
                    refused.append(error)
        if refused:
            raise refused[0]
    given |= read_plan(root).keys()  # and those of earlier stages
    return int(any(status(run) != "finished" for run in runs if run.run_id in given))


def by_serving_rank(runs: list[Run]) -> list[list[Run]]:
    """The runs in groups whose adapters take engine slots of one size, small ones first."""
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(serving_rank(largest_served_rank([run])), []).append(run)
    return [groups[rank] for rank in sorted(groups)]


def bench_for(runs: list[Run], directory: Path, execution: Execution) -> Bench:
    """A bench for as many of `runs` at once as this machine has room for.

    Raises ValueError, before anything is started, where model or data are missing, not as the scale
    says, not such that a run takes them, or not those of the sweep's recorded runs.
    """
    parallel_runs = min(execution.parallel_runs or default_parallel_runs(runs), len(runs))
    if runs[0].scale.engine.sleep:
        asked = execution.parallel_runs
        require(
            asked in (None, 1), "parallel_runs", asked, "1", "with engine.sleep an engine answers one run at a time"
        )
        parallel_runs = 1
    from rankrl.adapter.reach import reach
    from rankrl.data.base_model import local_directory

    scale, recorded = runs[0].scale, recorded_runs(directory / runs[0].sweep)
    base, items = local_directory(scale.model), load_items(scale.data)
    reach(scale.model, base / "config.json")
    check_measure(recorded, scale.data, items)
    for note in check_ready(scale, items, base):
        say(f"warning: {note}")
    prepare_process(neediest(runs).served.placement.gpus)
    from rankrl.ppo.records import versions
    from rankrl.sweep.bench import Bench

    if note := versions_apart(recorded.values(), versions()):
        say(f"recorded runs were made by other versions: {note}")
    return Bench(runs, directory, parallel_runs, execution.services == "per_run", items)


def _train(todo: list[Run], bench: Bench) -> bool:
    """Trains `todo` on the bench. Returns False if it stopped before all had ended."""
    from rankrl.sweep.bench import ClusterLost
    from rankrl.sweep.packing import train_all

    parallel_runs = min(bench.parallel_runs, len(todo))
    say(f"{parallel_runs} at a time")
    statuses: list[str] = []
    try:
        bench.base_samples()  # every run needs it
        for run in {run.arm: run for run in todo if run.pending}.values():
            bench.first_steps(run)  # before any run: what cannot be measured stops them all
        for status in train_all(todo, bench, parallel_runs):
            statuses.append(status)
    except ClusterLost as error:  # the same command continues on a new cluster
        say(f"stopping: a part of the cluster is gone: {error}")
        return False
    except ValueError as error:  # an error of one run, raised when the others have ended
        if "stopped" not in statuses and not isinstance(error, InUse):
            raise
        say(str(error))
        return False
    return "stopped" not in statuses


def default_parallel_runs(runs: list[Run]) -> int:
    """Number of runs at once that keeps this machine busy.

    With GPUs, whose engines gain most, that is MOST_PARALLEL, else four per core; but never more
    than fit with their adapters and optimizers into a fifth of a GPU, or half of the free memory.
    """
    if Path("/dev/nvidiactl").exists():
        return fitting_runs(runs, MOST_PARALLEL, gpu_room_bytes(runs[0].scale))
    return fitting_runs(runs, 4 * (os.cpu_count() or 1), psutil.virtual_memory().available / 2)
