"""The bench on which runs are trained: services, tokenizer, items and the base's evaluation, shared by all runs of a scale."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import ray
from openrlhf.utils.utils import get_tokenizer

from rankrl.adapter.save import save_adapter
from rankrl.data.items import load_items, revision
from rankrl.ppo.loop import Diverged, RunTrainer
from rankrl.ppo.records import Record, eval_rows, versions
from rankrl.ppo.rollout import Prompter, Rollouts, Sample, score
from rankrl.ppo.services import Services
from rankrl.recipe.plan import Run
from rankrl.recipe.schema import Scale
from rankrl.reward.grade import Verdict
from rankrl.sweep.progress import say

SERVICE_ERRORS = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.RaySystemError)


class Stopped(Exception):
    """A STOP file was found; the run is saved and can be resumed."""


class Bench:
    """Context manager over the services of `runs`, which share one scale."""

    def __init__(self, runs: list[Run], directory: Path):
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("openrlhf")]:
            logging.getLogger(name).setLevel(logging.WARNING)  # upstream's module loggers set their own level
        self.runs, self.directory = runs, directory
        self.scale = runs[0].scale
        self.train_items, self.eval_items = load_items(self.scale.data)

    def __enter__(self) -> Bench:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.services.stop()

    def _start(self) -> None:
        start_s = time.time()
        self.services = Services(self.runs[0], max(run.rank for run in self.runs))
        self.tokenizer = get_tokenizer(self.services.model_path, None)
        self._base: list[Sample] | None = None
        say(f"services are up after {time.time() - start_s:.0f} s")

    def _restart(self) -> None:
        self.services.stop()
        self._start()

    def base_samples(self) -> list[Sample]:
        """The base's evaluation, sampled once per (scale, items, sampling) and cached under the runs directory."""
        if self._base is None:
            key = base_key(self.scale, self.services.model_path, revision(self.eval_items))
            path = self.directory / "base" / f"{self.scale.name}-{key}.parquet"
            self._base = self._read_base(path) if path.exists() else self._sample_base(path)
        return self._base

    def _sample_base(self, path: Path) -> list[Sample]:
        rollouts = Rollouts(
            SimpleNamespace(args=None), Prompter(self.tokenizer, self.scale), self.services.engines, self.scale
        )
        samples = rollouts.evaluate(None, self.eval_items, self.scale.sampling.base_samples)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        pd.DataFrame(eval_rows(0, samples)).to_parquet(part)
        part.replace(path)
        return samples

    def _read_base(self, path: Path) -> list[Sample]:
        items = {item.item_id: item for item in self.eval_items}
        return [
            Sample(
                items[row.item_id],
                row.sample,
                [],
                [0] * row.response_tokens,
                [],
                False,
                Verdict(row.correct, row.boxed),
            )
            for row in pd.read_parquet(path).itertuples()
        ]

    def attempt(self, run: Run, attempts: int) -> dict[str, Any] | None:
        """Trains `run`, restarting services that died. Returns its result, or None if it was stopped on request.

        An error of one run is recorded as its result and does not reach the others.
        """
        directory, start_s = self.directory / run.sweep / run.run_id, time.time()
        for attempt in range(1, attempts + 1):
            record = Record(directory, run)
            try:
                return self._train(run, record, start_s)
            except Stopped:
                return None
            except SERVICE_ERRORS as error:
                say(f"{run.run_id}: a service died ({type(error).__name__}), restarting services")
                self._restart()
                if attempt == attempts:
                    return self._record_failure(run, record, error, start_s)
            except Exception as error:
                return self._record_failure(run, record, error, start_s)
        raise AssertionError("unreachable")

    def _record_failure(self, run: Run, record: Record, error: Exception, start_s: float) -> dict[str, Any]:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        status = "diverged" if isinstance(cause, Diverged) else "failed"
        steps = record.metrics() if (record.dir / "metrics.jsonl").exists() else []
        last = steps[-1] if steps else {"step": 0, "tokens_total": 0}
        message = " ".join(f"{type(cause).__name__}: {cause}".split())[:2000]
        result = self._result(run, status, None, None, last["tokens_total"], last["step"], start_s) | {"error": message}
        record.finish(result)
        return result

    def _train(self, run: Run, record: Record, start_s: float) -> dict[str, Any]:
        base = self.base_samples()
        trainer = RunTrainer(run, self.services, self.tokenizer, self.train_items, self.eval_items)
        state = record.load_checkpoint()
        first = state["step"] if state else 0
        data = {"train": revision(self.train_items), "evaluation": revision(self.eval_items)}
        record.start({**run.resolved(), "versions": versions(), "data_revision": data}, first)
        try:
            self._check_params(run, trainer.attach())
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
            trainer.detach()
        result = self._result(run, "finished", scores[-1], max(scores), trainer.tokens_total, run.recipe.steps, start_s)
        record.finish(result)
        return result

    def _step(self, run: Run, record: Record, trainer: RunTrainer, step: int) -> None:
        """One PPO step with its record, evaluation and checkpoint where they are due."""
        record.step(trainer.step(step))
        done, recipe = step + 1, run.recipe
        if done == recipe.steps or (recipe.eval_every and done % recipe.eval_every == 0):
            samples = trainer.evaluate(self.scale.sampling.eval_samples)
            record.evaluation(done, samples, score(samples))
        stop = record.dir / "STOP"
        if done < recipe.steps and (done % recipe.checkpoint_every == 0 or stop.exists()):
            record.save_checkpoint(trainer.state(done))
        if done < recipe.steps and stop.exists():
            stop.unlink()
            raise Stopped

    def _scores(self, record: Record) -> list[float]:
        """Scores of all evaluations after step 0, in order, those before a resume included."""
        rows = pd.read_parquet(record.dir / "evals.parquet")
        return [float(score) for step, score in rows.groupby("step")["correct"].mean().items() if step]

    def _check_params(self, run: Run, params: int) -> None:
        if params != run.trainable_params:
            raise ValueError(
                f"model.modules: got shapes with {run.trainable_params:,} adapter parameters, but the model has {params:,}"
            )

    def _save_adapter(self, run: Run, record: Record, trainer: RunTrainer, start: float, final: float) -> None:
        config, tensors = ray.get(trainer.actor_model_group.async_run_method("peft_files")[0])
        share = run.trainable_params / self.scale.model.base_params
        facts = {
            "rank": run.rank,
            "run_id": run.run_id,
            "sweep": run.sweep,
            "steps": run.recipe.steps,
            "params": run.trainable_params,
            "share": share,
            "final": final,
            "start": start,
            "gain": final - start,
        }
        save_adapter(record.dir / "adapter", config, tensors, self.scale.model.path, facts)

    def _result(
        self, run: Run, status: str, final: float | None, best: float | None, tokens: int, steps: int, start_s: float
    ) -> dict[str, Any]:
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
            "trainable_params": run.trainable_params,
            "base_params": self.scale.model.base_params,
        }


def base_key(scale: Scale, model_path: str, eval_revision: str) -> str:
    """What the base's score depends on: model, items, prompt, lengths and sampling."""
    files = [*sorted(Path(model_path).glob("*.safetensors")), Path(model_path) / "config.json"]
    weights = [
        (file.name, file.stat().st_size, _digest(file) if file.stat().st_size < 1 << 28 else file.stat().st_mtime)
        for file in files
    ]
    sampling = scale.sampling
    parts = [
        weights,
        eval_revision,
        scale.data.template,
        scale.lengths.response_tokens,
        sampling.eval_temperature,
        sampling.base_samples,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
