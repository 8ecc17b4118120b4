"""Finds the base on this machine: a directory, a model of the hub, or an embedded model."""

from __future__ import annotations

from pathlib import Path

from rankrl.data.smollm2_base import converted
from rankrl.recipe.architecture import EMBEDDED, SMOLLM2, check_config
from rankrl.recipe.require import require
from rankrl.recipe.scale import Model


def local_directory(model: Model) -> Path:
    """The directory of the base on this machine; downloads or converts it first if needed.

    Raises ValueError, one line, for a missing model, or one that `check_config` refuses.
    """
    path = converted() if model.path == SMOLLM2 else EMBEDDED.get(model.path) or Path(model.path)
    if not path.is_dir():
        path = _fetch(model)
    allowed = f"a Hugging Face model directory; {path} has no config.json"
    require((path / "config.json").is_file(), "model.path", model.path, allowed)
    check_config(model, path / "config.json")
    return path


def _fetch(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except Exception as error:
        raise ValueError(
            f"model.path: got {model.path!r}, allowed: an existing directory, or a hub id that this machine can reach "
            f"({type(error).__name__})"
        ) from error
