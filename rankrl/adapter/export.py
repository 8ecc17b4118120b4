"""An adapter for serving: one rank and scale 1 for all modules, which PEFT and vLLM read alike.

vLLM 0.29 reads one rank and one alpha per adapter and drops PEFT's patterns without a word (vllm/lora/peft_helper.py). So each
module's scale is folded into its B, factors are padded with zeros to the largest rank, and alpha = rank.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from huggingface_hub import ModelCard, ModelCardData
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rankrl.adapter.peft_files import check_plain
from rankrl.adapter.table import serving_rank
from rankrl.recipe.schema import require
from rankrl.report.read import read_result, read_sweep
from rankrl.report.statistics.cells import summarise
from rankrl.report.statistics.intervals import t_interval

CARD = """---
{data}
---
# LoRA adapter of rank {rank} for {base}
{params:,} trained parameters, {share:.3%} of the base; PPO with verifiable rewards, {steps} steps of {batch_size} prompts
(run `{run_id}` of the sweep `{sweep}`, {tokens_total:,} tokens).

| held-out score | value |
| --- | --- |
| this run | {final_score:.4f} {score_ci95} |
| the base | {base_score:.4f} |
| gain | {gain:+.4f} |
| gain, mean of the {n_seeds} seeds of its cell | {mean_gain:+.4f} {gain_ci95} |
| seeds that ended below the base | {negative_runs} of {n_seeds}, risk below {risk:.2f} |

Intervals are 95 %: of the run by evaluation item, of the cell by seed (Student t), of the risk Clopper-Pearson. One seed says
little: read it with the others.

| knob | value | formula |
| --- | --- | --- |
{knobs}

Load it with `PeftModel.from_pretrained(base, "DIR")`, or `vllm serve BASE --enable-lora --max-lora-rank {serving_rank}
--lora-modules rankrl=DIR`. Every module's scale is folded into its B and ranks are padded to {rank_served}; `peft/` holds the
unpadded original.
"""


def export(run: Path, to: Path) -> Path:
    """Writes the serving copy of a finished run's adapter to `to`, all or nothing, with the original in `to`/peft. Returns `to`.

    Raises ValueError, one line, for a run without an adapter, a damaged one, or a directory that holds something.
    """
    source = run / "adapter"
    require(
        (source / "adapter_config.json").is_file(),
        "RUN_DIR",
        str(run),
        "the directory of a finished run",
        f"no {source}",
    )
    require(not to.exists() or not any(to.iterdir()), "--to", str(to), "a new or empty directory")
    config, tensors = _read(source)
    served_config, served = for_serving(config, tensors)
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part / "peft")
    (part / "adapter_config.json").write_text(json.dumps(served_config, indent=1) + "\n")
    save_file(served, part / "adapter_model.safetensors", metadata={"format": "pt"})
    ModelCard(card(run, served_config["r"])).save(part / "README.md")
    if to.exists():
        to.rmdir()
    part.rename(to)
    return to


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        config = json.loads((directory / "adapter_config.json").read_text())
        return config, load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"RUN_DIR: {directory} is damaged: {' '.join(str(error).split())}") from error


def for_serving(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """PEFT's configuration and factors A [r, d_in], B [d_out, r] with folded scales, padded to the largest rank.

    Raises ValueError for kinds of adapter that other numbers than A, B and a scale describe.
    """
    check_plain(config, "RUN_DIR")
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    rank = max(tensors[f"{module}.lora_A.weight"].shape[0] for module in modules)
    served = {}
    for module in modules:
        a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
        missing = rank - a.shape[0]
        served[f"{module}.lora_A.weight"] = np.pad(a, ((0, missing), (0, 0)))
        served[f"{module}.lora_B.weight"] = np.pad(
            b * np.float32(module_scale(config, module, a.shape[0])), ((0, 0), (0, missing))
        )
    targets = [module.removeprefix("base_model.model.") for module in modules]
    patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    return {**config, "r": rank, "lora_alpha": rank, **patterns, "target_modules": targets}, served


def module_scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank as PEFT applies it to a module."""
    patterns = config.get("alpha_pattern") or {}
    key = get_pattern_key(patterns.keys(), module.removeprefix("base_model.model."))
    return patterns.get(key, config["lora_alpha"]) / rank


def card(run: Path, rank_served: int) -> str:
    """Model card of a run: what it is, its scores with intervals, its recipe. Raises ValueError if its records are damaged."""
    result = read_result(run)
    try:
        resolved = yaml.safe_load((run / "run.yaml").read_text())
        rows = pd.read_parquet(run / "evals.parquet")
        assert result is not None
        cell = [
            r for r in read_sweep(run.parent).results if all(r[k] == result[k] for k in ("arm", "rank", "batch_size"))
        ]
        seeds = summarise(cell)
        last = rows[rows["step"] == rows["step"].max()]
        base = resolved["scale"]["model"]["path"]
        facts = {**result, **seeds, "sweep": resolved["sweep"], "knobs": _knobs(resolved["derived"])}
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
        score_ci95=_interval(t_interval(last.groupby("item_id")["correct"].mean().tolist())),
        risk=seeds["risk_ci95"][1],
        serving_rank=serving_rank(rank_served),
        rank_served=rank_served,
        **{**facts, "gain_ci95": _interval(seeds["gain_ci95"])},
    )


def _interval(interval: list[float] | None) -> str:
    return "[{:.4f}, {:.4f}]".format(*interval) if interval else "(one seed: no interval)"


def _knobs(derived: dict[str, dict[str, Any]]) -> str:
    return "\n".join(f"| {name} | {knob['value']:.6g} | {knob['formula']} |" for name, knob in derived.items())
