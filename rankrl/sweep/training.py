"""The training of one run on working services.

It goes from the run's start or its checkpoint to its adapter and its result.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray

from rankrl.adapter.delta import scalars
from rankrl.adapter.save import save_adapter
from rankrl.adapter.start import Start
from rankrl.data.items import Item, revision
from rankrl.ppo.examples import keeps_examples
from rankrl.ppo.loop import RunTrainer
from rankrl.ppo.records import Record, versions
from rankrl.ppo.rollout import Prompter, Sample, score
from rankrl.ppo.services import Services
from rankrl.ppo.status import Diverged
from rankrl.ppo.upstream import flatten
from rankrl.recipe.allocation import Importance, allocation_document, write_importance
from rankrl.recipe.init_section import Init
from rankrl.recipe.plan import Run
from rankrl.recipe.rank_table import as_json, from_plain, span
from rankrl.report.nothing_right import tally
from rankrl.report.result import Result
from rankrl.sweep.progress import ANSWERS, say, say_once


class Stopped(Exception):
    """The run was asked to stop; it is saved and can be resumed."""


@dataclass(frozen=True)
class Supplies:
    """What all runs of a bench share during training."""

    services: Services
    prompter: Prompter
    train_items: list[Item]
    eval_items: list[Item]
    base: list[Sample]
    """Graded samples of the base's evaluation."""
    start: Callable[[Run, Init], Start | None]
    """Gives what the adapter of a run starts from by an init, or None if it needs no base."""


def stop_asked() -> bool:
    """Whether the Slurm task has asked all its runs to stop.

    It does so when its time is nearly over.
    """
    file = os.environ.get("RANKRL_STOP")
    return file is not None and Path(file).exists()


def train(run: Run, record: Record, supplies: Supplies, began_s: float) -> Result:
    """Trains `run` from its start or its checkpoint. Writes its result and returns it.

    Raises Stopped if the run was asked to stop, and Diverged, with its last finite state saved.
    """
    state = record.load_checkpoint()
    first = state["step"] if state else 0
    trainer = RunTrainer(run, supplies.services, supplies.prompter, supplies.train_items, supplies.eval_items)
    record.start(resolved(run, trainer, supplies), first)
    try:
        begin(run, record, trainer, supplies, state)
        for step in range(first, run.recipe.steps):
            take_step(run, record, trainer, step)
        scores = recorded_scores(record)
        write_adapter(run, record, trainer, run.recipe.steps, of_finished(score(supplies.base), scores[-1]))
        average = averaged(run, record, trainer, score(supplies.base)) if run.recipe.average.on else None
    except Diverged as error:
        keep_last_finite(run, record, trainer, supplies, error)
        raise
    finally:
        release(trainer, sys.exc_info()[1])
    steps, tokens_total = run.recipe.steps, trainer.tokens_total
    result = result_of(record, "finished", supplies.base, began_s, steps, tokens_total, scores)
    result = replace(result, average_score=average)
    record.finish(result)
    return result


def averaged(run: Run, record: Record, trainer: RunTrainer, start: float) -> float | None:
    """Evaluates the average of the adapters, and writes it to `adapter_average`. Returns its score.

    None if that is not finite: the run has finished all the same. It is evaluated like the last
    adapter: on the same items, with the same sampling seeds. `start` is the score of the base.
    """
    steps = run.recipe.steps
    trainer.load_average()
    try:
        final = score(trainer.evaluate(steps, run.scale.sampling.eval_samples))
    except Diverged as error:
        say(f"warning: {run.run_id}: its averaged adapter has no score: {error}")
        return None
    facts = {**card_facts(run, record, trainer, steps), **of_finished(start, final)}
    config, tensors = trainer.average_files()
    save_adapter(record.dir / "adapter_average", config, tensors, run.scale.model.path, facts)
    return final


def resolved(run: Run, trainer: RunTrainer, supplies: Supplies) -> dict[str, Any]:
    """The content of run.yaml. Every hyperparameter is known by now."""
    assert not run.pending
    data = {"train": revision(supplies.train_items), "evaluation": revision(supplies.eval_items)}
    upstream = {key: value for key, value in flatten(trainer.args).items() if value is not None}
    return {**run.resolved(), "openrlhf": upstream, "versions": versions(), "data_revision": data}


def begin(run: Run, record: Record, trainer: RunTrainer, supplies: Supplies, state: dict[str, Any] | None) -> None:
    """Attaches the run to the services, at its start or where `state` was saved."""
    table = from_plain(state["table"]) if state else trainer.allocate(importance(run, record.dir, supplies.start))
    record.trainable_params = trainer.attach(table, supplies.start(run, run.recipe.init))
    check_params(run, record.trainable_params)
    if state:
        trainer.restore(state)
        say(f"{run.run_id}: resumed at step {state['step']}")
    if not state or not state["step"]:
        record.evaluation(0, supplies.base, score(supplies.base))


def importance(run: Run, directory: Path, start: Callable[[Run, Init], Start | None]) -> Importance | None:
    """The importance of modules that a measured allocation needs; None for other allocations.

    It is measured on the same samples as the init, and also written to `directory`.
    """
    value = run.recipe.allocation.value
    if value is None:
        return None
    found = measured_importance(run, start)
    write_importance(directory / "importance.json", value, found)
    return found


def measured_importance(run: Run, start: Callable[[Run, Init], Start | None]) -> Importance:
    """The importance of modules by the measured value that the run's allocation asks for."""
    value, init = run.recipe.allocation.value, run.recipe.init
    method = "eva" if value == "activation" else "pg_subspace"
    prompts = run.recipe.allocation.prompts
    same = init.method == method and init.prompts == prompts and (value != "fisher" or init.fisher)
    measured = start(run, init if same else Init(method, prompts=prompts, fisher=value == "fisher"))
    assert measured is not None
    return measured.fisher if value == "fisher" else measured.values


def check_params(run: Run, params: int) -> None:
    """Raises ValueError if the adapter has more parameters than planned, or too few.

    Fewer are allowed only if a measurement decided it, and within the recipe's `equal_params`.
    """
    waited = run.recipe.allocation.measured  # then the plan had an upper bound
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


def take_step(run: Run, record: Record, trainer: RunTrainer, step: int) -> None:
    """Makes one PPO step and records it.

    Evaluation, adapter size and checkpoint follow when they are due. Raises Stopped if the run was
    asked to stop and is saved.
    """
    metrics = trainer.step(step)
    record.step(metrics)
    if step == 0 and (found := tally(metrics, trainer.examples)).alarming:
        say_once(ANSWERS, f"warning: {found.said('the first rollout')}")
    record.prove_checkpoint()
    done, recipe = step + 1, run.recipe
    if keeps_examples(done, recipe.steps):
        record.examples(trainer.examples)
    last = done == recipe.steps
    evaluate = last or (recipe.eval_every > 0 and done % recipe.eval_every == 0)
    checkpoint = done % recipe.checkpoint_every == 0
    if evaluate:
        samples = trainer.evaluate(done, run.scale.sampling.eval_samples)
        record.evaluation(done, samples, score(samples))
    if evaluate or checkpoint:
        record.adapter(done, scalars(trainer.update_sizes()))
    stopped = stop_found(record)
    if not last and (checkpoint or stopped):
        record.save_checkpoint(trainer.state(done))
    if not last and stopped:
        record.close()
        raise Stopped


def stop_found(record: Record) -> bool:
    """Whether the run was asked to stop.

    Its STOP file is removed, so that the next attempt continues.
    """
    stop = record.dir / "STOP"
    found = stop.exists() or stop_asked()
    stop.unlink(missing_ok=True)
    return found


def recorded_scores(record: Record) -> list[float]:
    """Scores of all evaluations after step 0, in order, with those before a resume."""
    rows = pd.read_parquet(record.dir / "evals.parquet", columns=["step", "correct"])
    return [float(score) for step, score in rows.groupby("step")["correct"].mean().items() if step]


def keep_last_finite(run: Run, record: Record, trainer: RunTrainer, supplies: Supplies, error: Diverged) -> None:
    """Saves the adapter and the checkpoint of a diverged run as they last were with all finite.

    The adapter is that before its last update. The checkpoint is the last one until then; if there
    is none, the run's start is saved. What cannot be saved is noted on `error`: the run has
    diverged all the same.
    """
    try:
        kept, finite = record.keep_checkpoint_until(error.finite_steps), trainer.step_back()
        if finite:
            facts = of_diverged(run, score(supplies.base), error)
            write_adapter(run, record, trainer, error.finite_steps, facts)
        if not kept:
            trainer.detach()
            record.save_checkpoint(start_state(run, trainer, supplies))
            record.wait_for_checkpoint()
    except Exception as other:
        error.add_note(f"Its last finite state could not be kept: {type(other).__name__}: {other}")
        if supplies.services.died_of(other):
            supplies.services.mark_broken()


def start_state(run: Run, trainer: RunTrainer, supplies: Supplies) -> dict[str, Any]:
    """The state that `run`, which is detached, had before its first step."""
    fresh = RunTrainer(run, supplies.services, supplies.prompter, supplies.train_items, supplies.eval_items)
    fresh.attach(trainer.table, trainer.start)
    try:
        return fresh.state(0)
    finally:
        fresh.detach()


def of_finished(start: float, final: float) -> dict[str, Any]:
    """What a finished run's model card says of the scores of the base and of the adapter."""
    return {"start": start, "final": final, "gain": final - start}


def of_diverged(run: Run, start: float, error: Diverged) -> dict[str, Any]:
    """What a diverged run's model card says of its end. `start` is the score of the base."""
    return {"start": start, "error": str(error), "planned_steps": run.recipe.steps}


def write_adapter(run: Run, record: Record, trainer: RunTrainer, steps: int, outcome: dict[str, Any]) -> None:
    """Writes the directory `adapter`: weights, model card, allocation and diagnostics.

    `steps` is the number of PPO steps that the weights are from; `outcome` says how the run ended.
    """
    config, tensors = trainer.peft_files()
    spent = allocation_document(run.recipe.allocation, run.rank, trainer.services.policy_shapes, trainer.table)
    facts = {**card_facts(run, record, trainer, steps), **outcome}
    found = {"steps": steps, **diagnostics(run, trainer)}
    more = {"allocation.json": as_json(spent), "diagnostics.json": json.dumps(found, indent=1)}
    save_adapter(record.dir / "adapter", config, tensors, run.scale.model.path, facts, more)


def card_facts(run: Run, record: Record, trainer: RunTrainer, steps: int) -> dict[str, Any]:
    """What a model card says of a run whose weights are from after `steps` PPO steps."""
    spent = allocation_document(run.recipe.allocation, run.rank, trainer.services.policy_shapes, trainer.table)
    return {
        "rank": span(spent),
        "run_id": run.run_id,
        "sweep": run.sweep,
        "steps": steps,
        "params": record.trainable_params,
        "share": record.trainable_params / run.scale.model.base_params,
    }


def diagnostics(run: Run, trainer: RunTrainer) -> dict[str, Any]:
    """The content of diagnostics.json: how the adapter started, and how far it has moved."""
    sizes = trainer.update_sizes()
    start = trainer.start or Start({})
    init = {**asdict(run.recipe.init), "measured": start.summary, "modules": start.diagnostics}
    return {"init": init, "final": {**scalars(sizes), "modules": sizes}}


def release(trainer: RunTrainer, error: BaseException | None) -> None:
    """Detaches the run, unless its services died. Never raises an error of the services.

    Where services died, a worker may be waiting for one that is gone.
    """
    services = trainer.services
    if trainer.ahead:
        trainer.ahead.end()
    if services.broken or (error is not None and services.died_of(error)):
        return
    try:
        trainer.detach()
    except ray.exceptions.RayError:
        services.mark_broken()


def result_of(
    record: Record,
    status: str,
    base: list[Sample] | None,
    began_s: float,
    steps: int,
    tokens_total: int,
    scores: list[float],
    error: str = "",
) -> Result:
    """The result of an attempt that began at `began_s`.

    `base` is None where the base could not be evaluated; `scores` are those of all evaluations
    after step 0, none of a run that did not end.
    """
    return Result.of(
        record.run,
        status,
        base_score=score(base) if base else None,
        final_score=scores[-1] if scores else None,
        best_score=max(scores, default=None),
        tokens_total=tokens_total,
        steps=steps,
        wall_s=time.time() - began_s,
        trainable_params=record.trainable_params,
        error=error,
    )
