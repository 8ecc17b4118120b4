"""Several runs at once on one bench.

Each thread takes the next run as soon as its own has ended.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from rankrl.recipe.plan import Run
from rankrl.report.result import Result
from rankrl.sweep.bench import Bench, Suspect
from rankrl.sweep.progress import progress, say

ATTEMPTS = 2  # for a run whose services die, without a new checkpoint in between

Outcome = Result | BaseException | None
"""The result of a run, None if it was stopped, or the exception that its attempt raised."""


def train_all(todo: list[Run], bench: Bench, parallel_runs: int) -> Iterator[str]:
    """Trains the runs, and yields the status of each as it ends.

    A run under which services keep dying is tried once more at the end, alone. The first ValueError
    of a run is raised when the others have ended, any other error at once.
    """
    start_s, refused, suspects, done = time.time(), [], [], 0
    for run, outcome in _packed(todo, bench, parallel_runs):
        if isinstance(outcome, Suspect):
            suspects.append(run)
        elif isinstance(outcome, ValueError):
            refused.append(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            done += 1
            yield _tell(run, outcome, done, len(todo), start_s)
    for run in suspects:
        done += 1
        yield _tell(run, bench.attempt(run, ATTEMPTS, alone=True), done, len(todo), start_s)
    if refused:
        raise refused[0]


def _packed(todo: list[Run], bench: Bench, parallel_runs: int) -> Iterator[tuple[Run, Outcome]]:
    """(run, outcome) of each run, as it ends."""
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[Run, Outcome]] = queue.SimpleQueue()
    for run in todo:
        waiting.put(run)

    def work() -> None:
        while True:
            try:
                run = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((run, bench.attempt(run, ATTEMPTS, alone=parallel_runs == 1)))
            except BaseException as error:
                ended.put((run, error))

    for _ in range(parallel_runs):  # daemons: a signal to the main thread ends the sweep at once
        threading.Thread(target=work, daemon=True).start()
    for _ in todo:
        yield ended.get()


def _tell(run: Run, result: Result | None, done: int, total: int, start_s: float) -> str:
    """Prints how a run ended and returns its status."""
    if result is None:
        say(f"{run.run_id}: stopped on request; the same command continues it")
        return "stopped"
    say(progress(result, done, total, (time.time() - start_s) / done * (total - done)))
    return result.status
