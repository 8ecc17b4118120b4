"""The model card of an exported adapter: what it is, its scores with intervals, and its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import ModelCardData

from rankrl.recipe.history import completed
from rankrl.recipe.rank_table import serving_rank
from rankrl.report.read import finite_steps, read_result, read_sweep
from rankrl.report.statistics.cells import summarise
from rankrl.report.statistics.intervals import t_interval
from rankrl.report.visible import markdown

CARD = """---
{data}
---
# LoRA adapter of rank {rank} for {base}
{params:,} trained parameters, {share:.3%} of the base; PPO with verifiable rewards, {steps} steps of {prompts} prompts
(run {run_id} of the sweep {sweep}, {tokens_total:,} tokens).

{outcome}

| knob | value | formula |
| --- | --- | --- |
{knobs}

Load it with `PeftModel.from_pretrained(base, "DIR")`, or `vllm serve BASE --enable-lora --max-lora-rank {serving_rank}
--lora-modules rankrl=DIR`. Every module's scale is folded into its B and ranks are padded to {rank_served}; `peft/` holds the
unpadded original.
"""
FINISHED = """| held-out score | value |
| --- | --- |
| this run | {final_score:.4f} {score_ci95} |
| the base | {base_score:.4f} |
| gain | {gain:+.4f} |
| gain, mean of the {n_seeds} seeds of its cell | {mean_gain:+.4f} {gain_ci95} |
| seeds that ended below the base | {negative_runs} of {n_seeds}, risk below {risk:.2f} |

Intervals are 95 %: of the run by evaluation item, of the cell by seed (Student t), of the risk Clopper-Pearson. One seed says
little: read it with the others."""
DIVERGED = """**The run diverged**: {error}. These are its weights after step {finite_steps}, before the divergence.
They have no held-out score; the base has {base_score:.4f}. Of the {n_seeds} seeds of its cell, {diverged_runs} diverged."""


AVERAGED = """**These are averaged weights** ({method} of {snapshots} snapshots), held-out score {average_score:.4f}.
The last adapter of the run:

"""


def card(run: Path, rank_served: int, average: bool = False) -> str:
    """Model card (Markdown) of a run's adapter: what it is, its scores with intervals, its recipe.

    `average`: of the averaged adapter, not of the last one. `rank_served`: the rank that the
    exported adapter is padded to. Raises ValueError if records of the run are damaged or missing.
    """
    result = read_result(run)
    try:
        resolved = yaml.safe_load((run / "run.yaml").read_text())
        rows = pd.read_parquet(run / "evals.parquet", columns=["step", "item_id", "correct"])
        assert result is not None
        cell = [
            r for r in read_sweep(run.parent).counted if all(r[k] == result[k] for k in ("arm", "rank", "batch_size"))
        ]
        seeds = summarise(cell)
        last = rows[rows["step"] == rows["step"].max()]
        base = resolved["scale"]["model"]["path"]
        names = {"run_id": markdown(result["run_id"]), "sweep": markdown(resolved["sweep"])}
        facts = {**result, **seeds, **names, "knobs": _knobs(resolved["derived"])}
        recipe = completed("recipe", resolved["recipe"])
        each, whole = recipe["samples_per_prompt"], recipe["batch_samples_per_prompt"]
        facts["prompts"] = result["batch_size"] * (whole or each) // each
        note = AVERAGED.format(**resolved["recipe"]["average"], **result) if average else ""
    except (OSError, KeyError, TypeError, AssertionError, yaml.YAMLError) as error:
        raise ValueError(
            f"RUN_DIR: the records in {run} are damaged or missing ({type(error).__name__}: {error})"
        ) from error
    hub = base if "/" in base and not base.startswith(("/", ".")) else None  # a card names hub models only
    return CARD.format(
        data=ModelCardData(base_model=hub, library_name="peft", tags=["lora", "ppo", "rankrl"]).to_yaml(),
        base=base,
        params=result["trainable_params"],
        share=result["trainable_params"] / result["base_params"],
        outcome=note + _outcome(run, facts, last.groupby("item_id")["correct"].mean().tolist()),
        serving_rank=serving_rank(rank_served),
        rank_served=rank_served,
        **facts,
    )


def _outcome(run: Path, facts: dict[str, Any], item_scores: list[float]) -> str:
    """The scores of a finished run, with intervals; of a diverged run, what its weights are."""
    if facts["status"] != "finished":
        return DIVERGED.format(finite_steps=finite_steps(run), **facts)
    intervals = {"score_ci95": _interval(t_interval(item_scores)), "gain_ci95": _interval(facts["gain_ci95"])}
    return FINISHED.format(risk=facts["risk_ci95"][1], **{**facts, **intervals})


def _interval(interval: list[float] | None) -> str:
    return "[{:.4f}, {:.4f}]".format(*interval) if interval else "(one seed: no interval)"


def _knobs(derived: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"| {markdown(name)} | {knob['value']:.6g} | {markdown(knob['formula'])} |" for name, knob in derived.items()
    )
