"""Whether vLLM serves adapters of a model, read from vLLM's source.

Importing vLLM takes half a minute of a CPU and starts threads; an engine is to refuse nothing that
could have been refused before it starts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rankrl.recipe.require import require

REGISTRY = "_TEXT_GENERATION_MODELS"
"""vLLM's table of decoders: architecture -> (file, class)."""
MIXIN = "SupportsLoRA"


def check_served(path: str, config: dict[str, Any]) -> None:
    """Raises ValueError, one line, for a model that vLLM serves no adapters of.

    `config` is the model's config.json. Nothing is checked where vLLM is not installed. Models
    whose source is elsewhere, or that vLLM wraps from transformers, are left to the engine and the
    canary.
    """
    require(
        "vision_config" not in config and "audio_config" not in config,
        "model.path",
        path,
        "a model of text alone",
        f"{config['model_type']} also takes images or sound, and its decoder is nested; take the text-only checkpoint",
    )
    folder, architectures = _folder(), config.get("architectures") or []
    require(len(architectures) > 0, "model.path", path, "a config.json that names its architectures")
    if folder is None:
        return
    file, name = _table(folder).get(architectures[0], ("", ""))
    taken = not (folder / f"{file}.py").is_file() or MIXIN in _ancestry(folder, file, name)
    require(
        taken, "model.path", path, "a model that vLLM serves adapters of", f"{architectures[0]} lacks {MIXIN} there"
    )


def _folder() -> Path | None:
    """The folder of vLLM's models; None without vLLM."""
    spec = find_spec("vllm")
    return Path(spec.origin).parent / "model_executor" / "models" if spec and spec.origin else None


@lru_cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def _table(folder: Path) -> dict[str, tuple[str, str]]:
    for node in _parsed(folder / "registry.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == REGISTRY:
            return ast.literal_eval(node.value)
    return {}  # another vLLM, of which nothing is known


def _ancestry(folder: Path, file: str, name: str) -> Iterator[str]:
    """Names of the classes that a class of vLLM's models derives from, as far as they are there."""
    source = folder / f"{file}.py"
    if not source.is_file():
        return
    imported = {
        alias.asname or alias.name: (node.module or "").rpartition(".")[2]
        for node in ast.walk(_parsed(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in _parsed(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in (base.id for base in node.bases if isinstance(base, ast.Name)):
                yield base
                yield from _ancestry(folder, imported.get(base, file), base)
