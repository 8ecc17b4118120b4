"""Many runs on warm services, one after another: what is finished is skipped, what broke is resumed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from rankrl.recipe.plan import Run, plan
from rankrl.report.read import read_result
from rankrl.sweep.identity import check_identity
from rankrl.sweep.progress import owned, progress, say

STOPPED = 75  # EX_TEMPFAIL: stopped on request and resumable
ATTEMPTS = 2  # of a run whose services died


def _prepare_process() -> None:
    """Before the heavy imports: the CPU stand-ins where there is no GPU, and quiet libraries."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "RAY_ADDRESS" not in os.environ:  # a cluster of one machine: Ray listens on loopback alone, as it does on a Mac
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import warnings

    warnings.simplefilter("ignore")  # of libraries; rankrl reports by exceptions and printed lines
    import torch

    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()
    for name in ("ray", "deepspeed", "DeepSpeed", "vllm", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)


def sweep(runs: list[Run], directory: Path, report: bool = True) -> int:
    """Runs everything that is not finished. Returns 0, 75 if stopped on request, 1 if a run failed or diverged.

    Raises ValueError if a run directory holds another run under the same id.
    """
    root = directory / runs[0].sweep
    for run in runs:
        check_identity(root / run.run_id, run)
    with owned(root) if report else nullcontext():
        code = _sweep(runs, directory)
    if report and any(root.glob("*/result.json")):
        from rankrl.report.build import build, print_table

        for summary in build(root):
            print_table(summary)
    return code


def _sweep(runs: list[Run], directory: Path) -> int:
    results = {run.run_id: read_result(directory / run.sweep / run.run_id) for run in runs}
    todo = [run for run in runs if (results[run.run_id] or {}).get("status") not in ("finished", "diverged")]
    say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished, {len(todo)} to do")
    if not todo:
        return int(any(result["status"] != "finished" for result in results.values() if result))
    _prepare_process()
    from rankrl.sweep.worker import Bench

    bad, started_s = sum(result["status"] == "diverged" for result in results.values() if result), time.time()
    with Bench(todo, directory) as bench:
        for done, run in enumerate(todo):
            result = bench.attempt(run, ATTEMPTS)
            if result is None:
                say(f"{run.run_id}: stopped on request; the same command continues it")
                return STOPPED
            bad += result["status"] != "finished"
            eta_s = (time.time() - started_s) / (done + 1) * (len(todo) - done - 1)
            say(progress(result, done + 1, len(todo), eta_s))
    return 1 if bad else 0


def evaluate_base(scale_name: str, directory: Path) -> int:
    """Prints the base's pass@1 and pass@k at a scale, by source."""
    from rankrl.recipe.load import Experiment, load_scale
    from rankrl.recipe.schema import Recipe

    scale = load_scale(scale_name)
    runs = plan(Experiment("base", {"": Recipe(ranks=(1,), batch_sizes=(16,), seeds=(0,), steps=1)}, scale))
    _prepare_process()
    from rankrl.report.passk import pass_table
    from rankrl.sweep.worker import Bench

    with Bench(runs, directory) as bench:
        for line in pass_table([(s.item.item_id, s.item.source, s.verdict.correct) for s in bench.base_samples()]):
            print(line)
    return 0
