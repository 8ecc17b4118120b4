"""The bench on which runs are trained, several at a time: they share services, tokenizer, items and the base's evaluation."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import ray
import torch
from openrlhf.utils.utils import get_tokenizer

from rankrl.adapter.delta import scalars
from rankrl.adapter.save import save_adapter
from rankrl.adapter.start import Start
from rankrl.data.items import Item, revision
from rankrl.data.loading import load_items
from rankrl.ppo.loop import Diverged, RunTrainer
from rankrl.ppo.records import Record, versions
from rankrl.ppo.rollout import Prompter, Rollouts, Sample, score
from rankrl.ppo.services import Services, resolve_model
from rankrl.ppo.upstream import flatten
from rankrl.recipe.allocation import Importance, allocation_document, planned, write_importance
from rankrl.recipe.init_section import DRAWN, Init
from rankrl.recipe.plan import Run
from rankrl.recipe.rank_table import as_json, from_plain, span
from rankrl.report.ledger import ENDED
from rankrl.report.read import curves, read_result
from rankrl.sweep.base_score import base_samples
from rankrl.sweep.measuring import cached_start
from rankrl.sweep.owner import owned
from rankrl.sweep.progress import say


def services_died(error: BaseException, services: Services) -> bool:
    """Whether what the services hold is not to be trusted after `error`: a process or its GPU is gone, or one of several workers
    raised while the others wait for it. A ValueError is a check of ours, which all workers fail together.
    """
    if not isinstance(error, ray.exceptions.RayError):
        return False
    cause = getattr(error, "cause", None)
    if not isinstance(error, ray.exceptions.RayTaskError) or isinstance(cause, (ray.exceptions.RayError, *GPU_ERRORS)):
        return True
    alone = len(services.policy.workers) == len(services.critic.workers) == 1
    return not (alone or isinstance(cause, ValueError))


GPU_ERRORS = (torch.AcceleratorError, torch.OutOfMemoryError)


class Stopped(Exception):
    """A STOP file was found; the run is saved and can be resumed."""


def stop_asked() -> bool:
    """Whether the Slurm task has asked all its runs to stop, because its time is nearly over."""
    file = os.environ.get("RANKRL_STOP")
    return file is not None and Path(file).exists()


class ClusterLost(Exception):
    """The cluster has lost nodes, and what is left of it is too small for the services."""


class Suspect(Exception):
    """Services died again and again under this run, while others were on them."""


class Bench:
    """Context manager over warm services of one scale. `attempt` may be called by `parallel_runs` threads at a time.

    Services are started when first needed, and anew after they died or, with `services_per_run`, after every run.
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
        """Services that work, started if need be."""
        with self._lock:
            if self._services is None or self._services.broken:
                start_s = time.time()
                if self._services is not None:
                    self._services.stop()
                self._services = self._start(again=self._services is not None)
                say(f"services are up after {time.time() - start_s:.0f} s: {self._services.seats}")
            return self._services

    def _start(self, again: bool) -> Services:
        try:
            return Services(
                self.runs[0], max(run.max_rank * run.recipe.init.served_ranks for run in self.runs), self.parallel_runs
            )
        except (ValueError, ray.exceptions.RayError) as error:
            raise ClusterLost(" ".join(str(error).split())[:500]) if again else error from error

    def base_samples(self) -> list[Sample]:
        with self._lock:
            if self._base is None:
                try:
                    self._base = self._evaluate_base()
                except ray.exceptions.RayError as error:
                    say(f"base: restarting services after {' '.join(str(error).split())[:200]}")
                    assert self._services is not None
                    self._services.broken = True
                    self._base = self._evaluate_base()
            return self._base

    def _evaluate_base(self) -> list[Sample]:
        services = self.services
        return base_samples(self._rollouts(services), self.eval_items, self.directory, services.model_path)

    def _rollouts(self, services: Services) -> Rollouts:
        """Of the base."""
        nothing = SimpleNamespace(args=None)
        return Rollouts(nothing, self.prompter, services.engines, self.scale, services.grader)

    def start(self, run: Run, init: Init | None = None) -> Start | None:
        """What the adapter of `run` starts from, if its init needs the base: the same for all cells of a seed."""
        init = init or run.recipe.init
        if init.method in DRAWN:
            return None
        recipe, services = run.recipe, self.services
        rank = max(planned(recipe, self.scale, rank, run.seed)[1] for rank in recipe.ranks)
        with self._lock:
            rollouts = self._rollouts(services)
            directory = self.directory / run.sweep / "adapter"
            return cached_start(services, rollouts, self.train_items, init, rank, run.seed, directory)

    def _importance(self, run: Run, record: Record) -> Importance | None:
        """What a measured allocation measures, on the samples that the init is measured on; also left in the run's directory."""
        value, init = run.recipe.allocation.value, run.recipe.init
        if value is None:
            return None
        method = "eva" if value == "activation" else "pg_subspace"
        prompts = run.recipe.allocation.prompts
        same = init.method == method and init.prompts == prompts and (value != "fisher" or init.fisher)
        start = self.start(run, init if same else Init(method, prompts=prompts, fisher=value == "fisher"))
        assert start is not None
        importance = start.fisher if value == "fisher" else start.values
        write_importance(record.dir / "importance.json", value, importance)
        return importance

    def attempt(self, run: Run, attempts: int, alone: bool = True) -> dict[str, Any] | None:
        """Trains `run`. Where services died under it, it goes on from its checkpoint on new ones, until they died `attempts` times
        without a new checkpoint.

        Returns the result, or None if the run was stopped on request. An error of one run is recorded as its result and does not
        reach the others. Raises Suspect where services kept dying and the run was not `alone` on them: another may be to blame.
        """
        start_s, saved, left = time.time(), -1, attempts
        with owned(self.directory / run.sweep, run.run_id):
            result = read_result(self.directory / run.sweep / run.run_id)
            if result and result["status"] in ENDED:  # by another process, since this one planned
                return result
            if stop_asked():
                return None
            record = Record(self.directory / run.sweep / run.run_id, run)
            while True:
                services = self.services
                try:
                    return self._train(run, record, services, start_s)
                except Stopped:
                    return None
                except Exception as error:
                    if self._closed:
                        raise
                    failure = self._failure(record, error, start_s)
                    if not services_died(error, services):
                        return self._recorded(record, failure)
                    services.broken = True
                    reached = record.saved_step()
                    left, saved = (attempts if reached > saved else left) - 1, reached
                    if not left and alone:
                        return self._recorded(record, failure)
                    record.close()
                    if not left:
                        raise Suspect(run.run_id) from error
                    say(f"{run.run_id}: restarting services after {failure['error'][:200]}")
                finally:
                    services.broken |= self.services_per_run

    def _failure(self, record: Record, error: Exception, start_s: float) -> dict[str, Any]:
        """The result of a run that `error` ended."""
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        status = "diverged" if isinstance(cause, Diverged) else "failed"
        steps = curves(record.dir)
        last = steps[-1] if steps else {"step": 0, "tokens_total": 0}
        message = " ".join(f"{type(cause).__name__}: {cause}".split())[:2000]
        return self._result(record, status, None, None, last["tokens_total"], last["step"], start_s) | {
            "error": message
        }

    def _recorded(self, record: Record, failure: dict[str, Any]) -> dict[str, Any]:
        """Writes the result, unless the disk that ended the run is still full: then the next sweep tries it again."""
        try:
            record.finish(failure)
        except OSError as error:
            say(f"{record.run.run_id}: its result could not be written: {error}")
        return failure

    def _train(self, run: Run, record: Record, services: Services, start_s: float) -> dict[str, Any]:
        state = record.load_checkpoint()
        first = state["step"] if state else 0
        trainer = RunTrainer(run, services, self.prompter, self.train_items, self.eval_items)
        data = {"train": revision(self.train_items), "evaluation": revision(self.eval_items)}
        upstream = {key: value for key, value in flatten(trainer.args).items() if value is not None}
        record.start({**run.resolved(), "openrlhf": upstream, "versions": versions(), "data_revision": data}, first)
        base = self.base_samples()
        try:
            table = from_plain(state["table"]) if state else trainer.allocate(self._importance(run, record))
            record.trainable_params = trainer.attach(table, self.start(run))
            self._check_params(run, record.trainable_params)
            if state:
                trainer.restore(state)
                say(f"{run.run_id}: resumed at step {first}")
            else:
                record.evaluation(0, base, score(base))
            for step in range(first, run.recipe.steps):
                self._step(run, record, trainer, step)
            scores = self._scores(record)
            self._save_adapter(run, record, trainer, score(base), scores[-1])
        finally:
            self._release(trainer, services, sys.exc_info()[1])
        result = self._result(
            record, "finished", scores[-1], max(scores), trainer.tokens_total, run.recipe.steps, start_s
        )
        record.finish(result)
        return result

    def _release(self, trainer: RunTrainer, services: Services, error: BaseException | None) -> None:
        """Detaches the run, unless its services died: there a worker may wait for one that is gone. Raises nothing."""
        if services.broken or (error is not None and services_died(error, services)):
            return
        try:
            trainer.detach()
        except ray.exceptions.RayError:
            services.broken = True

    def _step(self, run: Run, record: Record, trainer: RunTrainer, step: int) -> None:
        """One PPO step with its record, evaluation and checkpoint where they are due."""
        record.step(trainer.step(step))
        done, recipe = step + 1, run.recipe
        if done == recipe.steps or (recipe.eval_every and done % recipe.eval_every == 0):
            samples = trainer.evaluate(self.scale.sampling.eval_samples)
            record.evaluation(done, samples, score(samples))
        checkpoint = done % recipe.checkpoint_every == 0
        if checkpoint or done == recipe.steps or (recipe.eval_every and done % recipe.eval_every == 0):
            record.adapter(done, scalars(trainer.update_sizes()))
        stop = record.dir / "STOP"
        stopped = stop.exists() or stop_asked()
        stop.unlink(missing_ok=True)
        if done < recipe.steps and (checkpoint or stopped):
            record.save_checkpoint(trainer.state(done))
        if done < recipe.steps and stopped:
            record.close()
            raise Stopped

    def _scores(self, record: Record) -> list[float]:
        """Scores of all evaluations after step 0, in order, those before a resume included."""
        rows = pd.read_parquet(record.dir / "evals.parquet")
        return [float(score) for step, score in rows.groupby("step")["correct"].mean().items() if step]

    def _check_params(self, run: Run, params: int) -> None:
        waited = run.recipe.allocation.measured  # the plan had an upper bound
        if params > run.trainable_params or (params < run.trainable_params and not waited):
            raise ValueError(
                f"model.modules: got shapes with {run.trainable_params:,} adapter parameters, but the model has {params:,}"
            )
        share = run.recipe.equal_params
        if share and params < (1 - share) * run.trainable_params:
            raise ValueError(
                f"equal_params: got {params:,} adapter parameters, allowed: {share:.1%} below the {run.trainable_params:,} of the "
                "other arms (what was measured leaves nothing to spend the rest on: raise allocation.max_rank)"
            )

    def _save_adapter(self, run: Run, record: Record, trainer: RunTrainer, start: float, final: float) -> None:
        config, tensors = ray.get(trainer.actor_model_group.async_run_method("peft_files")[0])
        shapes = trainer.services.policy_shapes
        spent = allocation_document(run.recipe.allocation, run.rank, shapes, trainer.table)
        facts = {
            "rank": span(spent),
            "run_id": run.run_id,
            "sweep": run.sweep,
            "steps": run.recipe.steps,
            "params": record.trainable_params,
            "share": record.trainable_params / self.scale.model.base_params,
            "final": final,
            "start": start,
            "gain": final - start,
        }
        more = {"allocation.json": as_json(spent), "diagnostics.json": json.dumps(_diagnostics(run, trainer), indent=1)}
        save_adapter(record.dir / "adapter", config, tensors, self.scale.model.path, facts, more)

    def _result(
        self,
        record: Record,
        status: str,
        final: float | None,
        best: float | None,
        tokens: int,
        steps: int,
        start_s: float,
    ) -> dict[str, Any]:
        run = record.run
        base = score(self._base) if self._base else None
        gain = None if final is None or base is None else final - base
        grid = {"run_id": run.run_id, "arm": run.arm, "rank": run.rank, "batch_size": run.batch_size, "seed": run.seed}
        return {
            **grid,
            "status": status,
            "base_score": base,
            "final_score": final,
            "best_score": best,
            "gain": gain,
            "tokens_total": tokens,
            "steps": steps,
            "wall_s": time.time() - start_s,
            "trainable_params": record.trainable_params,
            "base_params": self.scale.model.base_params,
        }


def _diagnostics(run: Run, trainer: RunTrainer) -> dict[str, Any]:
    """diagnostics.json: how the adapter started, and how far it has moved the base."""
    sizes = trainer.update_sizes()
    start = trainer.start or Start({})
    init = {**asdict(run.recipe.init), "measured": start.summary, "modules": start.diagnostics}
    return {"init": init, "final": {**scalars(sizes), "modules": sizes}}
