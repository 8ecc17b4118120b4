"""The bench on which runs are trained, several at a time.

It holds their services and decides whether a run is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import ray
from openrlhf.utils.utils import get_tokenizer

from rankrl.adapter.start import Start
from rankrl.data.items import Item
from rankrl.data.loading import load_items
from rankrl.ppo.records import Record
from rankrl.ppo.rollout import Prompter, Rollouts, Sample
from rankrl.ppo.services import Services, resolve_model
from rankrl.ppo.status import Diverged
from rankrl.recipe.allocation import planned
from rankrl.recipe.first_step import FirstSteps, read_first_steps, write_first_steps
from rankrl.recipe.init_section import DRAWN, Init
from rankrl.recipe.plan import Run, largest_served_rank, neediest
from rankrl.report.ledger import ENDED
from rankrl.report.read import curves, read_result
from rankrl.report.result import Result
from rankrl.sweep.base_score import base_samples, cache_file, tally_of
from rankrl.sweep.error_text import error_text
from rankrl.sweep.first_step_cache import cache_path, measured_ranks
from rankrl.sweep.first_steps import measure_first_steps
from rankrl.sweep.measuring import cached_start
from rankrl.sweep.owner import owned
from rankrl.sweep.progress import ANSWERS, say, say_once
from rankrl.sweep.training import Stopped, Supplies, result_of, stop_asked, train

T = TypeVar("T")


class ClusterLost(Exception):
    """The cluster has lost nodes, and the rest of it is too small for the services."""


class Suspect(Exception):
    """Services died repeatedly under this run while other runs were on them."""


class Bench:
    """Context manager that keeps services of one scale running.

    Up to `parallel_runs` threads may call `attempt` at a time. Services are started when first
    needed, and started again after they died or, with `services_per_run`, after every run.
    """

    def __init__(
        self,
        runs: list[Run],
        directory: Path,
        parallel_runs: int = 1,
        services_per_run: bool = False,
        items: tuple[list[Item], list[Item]] | None = None,
    ):
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("openrlhf")]:
            logging.getLogger(name).setLevel(logging.WARNING)  # upstream's module loggers set their own level
        self.runs, self.directory = runs, directory
        self.parallel_runs, self.services_per_run = parallel_runs, services_per_run
        self.scale = runs[0].scale
        self.train_items, self.eval_items = items or load_items(self.scale.data)
        model_path = resolve_model(self.scale.model)
        self.prompter = Prompter(get_tokenizer(model_path, None), self.scale)
        for item in [*self.train_items, *self.eval_items]:
            self.prompter(item)  # a prompt that is too long is an error before anything is started
        self._services: Services | None = None
        self._base: list[Sample] | None = None
        self._lock = threading.RLock()
        self._closed = False

    def __enter__(self) -> Bench:
        _ = self.services
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._services is not None:
            self._services.grader.close()
        ray.shutdown()

    @property
    def services(self) -> Services:
        """Working services, started if needed. Raises ClusterLost if a restart fails."""
        with self._lock:
            if self._services is None or self._services.broken:
                began_s = time.time()
                if self._services is not None:
                    self._services.stop()
                self._services = self._start(again=self._services is not None)
                say(f"services are up after {time.time() - began_s:.0f} s: {self._services.seats}")
            return self._services

    def _start(self, again: bool) -> Services:
        try:
            return Services(neediest(self.runs), largest_served_rank(self.runs), self.parallel_runs)
        except (ValueError, ConnectionError, ray.exceptions.RayError) as error:
            raise ClusterLost(" ".join(str(error).split())[:500]) if again else error from error

    def base_samples(self) -> list[Sample]:
        """Graded samples of the base's evaluation, the same for all runs."""
        with self._lock:
            if self._base is None:
                self._base = self._twice("base", self._evaluate_base)
            return self._base

    def _twice(self, what: str, make: Callable[[], T]) -> T:
        """The result of `make`; from a second try, on new services, if the services fail.

        A ValueError is one of our own checks, which would fail again.
        """
        try:
            return make()
        except ray.exceptions.RayError as error:
            if isinstance(error, ValueError):
                raise
            say(f"{what}: restarting services after {' '.join(str(error).split())[:200]}")
            assert self._services is not None
            self._services.mark_broken()
            return make()

    def _evaluate_base(self) -> list[Sample]:
        services = self.services
        samples = base_samples(self._rollouts(services), self.eval_items, self.directory, services.model_path)
        if (found := tally_of(samples)).alarming:
            say_once(ANSWERS, f"warning: {found.said('the base')}")
        if samples[0].response is None and any(run.recipe.keep_responses != "none" for run in self.runs):
            cached = cache_file(self.scale, self.eval_items, self.directory, services.model_path)
            say(
                f"base: {cached} has no responses (of an earlier rankrl), so runs keep none of step 0; "
                "remove it before a new sweep, not within one"
            )
        return samples

    def _rollouts(self, services: Services) -> Rollouts:
        """Rollouts on these services."""
        return Rollouts(self.prompter, services.engines, self.scale, services.grader)

    def start(self, run: Run, init: Init | None = None) -> Start | None:
        """What the adapter of `run` starts from, the same for all cells of a seed.

        None if its init does not need the base. `init` replaces the recipe's init.
        """
        init = init or run.recipe.init
        if init.method in DRAWN:
            return None
        recipe, services = run.recipe, self.services
        rank = max(planned(recipe, self.scale, rank, run.seed)[1] for rank in recipe.ranks)
        with self._lock:
            rollouts = self._rollouts(services)
            directory = self.directory / run.sweep / "adapter"
            return cached_start(services, rollouts, self.train_items, init, rank, run.seed, directory)

    def first_steps(self, run: Run) -> FirstSteps:
        """What the first optimizer step of each rank of the recipe does, the same for all its runs.

        From the cache, else measured. A file that cannot be read is written again; if another
        process has measured it in the meantime, its file counts.
        """
        items = (self.train_items, self.eval_items)
        with self._lock:
            path = cache_path(run, items, self.services.model_path, self.directory)
            if known := read_first_steps(path):
                return known
            say(f"measuring the first step of ranks {', '.join(map(str, measured_ranks(run)))} on the base")
            found = self._twice("first step", lambda: self._measure_first_steps(run))
            if known := read_first_steps(path):
                return known
            write_first_steps(path, found)
            return found

    def _measure_first_steps(self, run: Run) -> FirstSteps:
        services = self.services
        items = (self.train_items, self.eval_items)
        return measure_first_steps(services, self._rollouts(services), items, run, self.start)

    def attempt(self, run: Run, attempts: int, alone: bool = True) -> Result | None:
        """Trains `run` and returns its result, or None if the run was stopped on request.

        If services die under it, the run continues from its checkpoint on new ones, until they have
        died `attempts` times without a new checkpoint. An error of one run is recorded as its
        result and does not affect the others. Raises Suspect if services kept dying and the run was
        not `alone` on them: another run may be the cause.
        """
        with owned(self.directory / run.sweep, run.run_id):
            result = read_result(self.directory / run.sweep / run.run_id)
            if result and result["status"] in ENDED:  # ended by another process after this one had planned
                return Result(**result)
            if stop_asked():
                return None
            if run.pending:
                run = run.at(self.first_steps(run))
            record = Record(self.directory / run.sweep / run.run_id, run)
            try:
                return self._attempts(run, record, attempts, alone)
            except Stopped:
                return None

    def _attempts(self, run: Run, record: Record, attempts: int, alone: bool) -> Result:
        began_s, saved, left = time.time(), -1, attempts
        while True:
            services = self.services
            try:
                supplies = self._supplies()
                services = supplies.services
                return train(run, record, supplies, began_s)
            except (Stopped, ClusterLost):
                raise
            except Exception as error:
                if self._closed:
                    raise
                failure = self._failure(record, error, began_s)
                if not services.died_of(error):
                    return recorded(record, failure, error)
                services.mark_broken()
                try:
                    record.wait_for_checkpoint()
                except OSError as full:
                    return recorded(record, self._failure(record, full, began_s), full)
                reached = record.saved_step()
                left, saved = (attempts if reached > saved else left) - 1, reached
                if not left and alone:
                    return recorded(record, failure, error)
                record.close()
                if not left:
                    raise Suspect(run.run_id) from error
                say(f"{run.run_id}: restarting services after {failure.error[:200]}")
            finally:
                if self.services_per_run:
                    services.mark_broken()

    def _supplies(self) -> Supplies:
        base = self.base_samples()  # first: it may start services anew
        return Supplies(self.services, self.prompter, self.train_items, self.eval_items, base, self.start)

    def _failure(self, record: Record, error: Exception, began_s: float) -> Result:
        """The result of a run that ended with `error`."""
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        status = "diverged" if isinstance(cause, Diverged) else "failed"
        steps = curves(record.dir)
        last = steps[-1] if steps else {"step": 0, "tokens_total": 0}
        message = " ".join(f"{type(cause).__name__}: {cause}".split())[:2000]
        return result_of(record, status, self._base, began_s, last["step"], last["tokens_total"], [], message)


def recorded(record: Record, failure: Result, error: Exception) -> Result:
    """Writes error.txt and the result of a run that ended with `error`, and returns the result.

    If the disk is still full, no result is written, and the next sweep tries the run again.
    """
    with told(f"{failure.run_id}: its error.txt"):
        record.error(error_text(failure, error))
    with told(f"{failure.run_id}: its result"):
        record.finish(failure)
    return failure


@contextmanager
def told(what: str) -> Iterator[None]:
    """Context in which an error of the disk is printed and goes no further."""
    try:
        yield
    except OSError as error:
        say(f"{what} could not be written: {error}")
