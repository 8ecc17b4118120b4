"""Counts of the parameters that adapters can train in a model.

They are counted on the meta device: no weights, no memory, seconds even at 235B.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rankrl.adapter.host import target_shapes
from rankrl.adapter.served import check_served
from rankrl.recipe.architecture import read_config
from rankrl.recipe.require import require
from rankrl.recipe.scale import Model


@dataclass(frozen=True)
class Reach:
    """Parameters of a model, and those that a LoRA of rank 1 on parts of it would train.

    At rank r a LoRA trains r times as many: both its factors grow with the rank.
    """

    base_params: int
    layers: int
    adapted: dict[str, tuple[int, int]]
    """Modules that the scale adapts: full name -> (d_in, d_out)."""
    linear_per_rank: int
    """Parameters of a LoRA of rank 1 on every linear module except the output layer."""
    experts: dict[str, tuple[int, ...]]
    """Full name -> shape [experts, .., ..] of the parameters that hold all experts of a layer.

    They are plain parameters, not modules.
    """
    all_linear_per_rank: int
    """Parameters that PEFT trains at rank 1 with `all-linear`.

    Since PEFT 0.21, these are more than the linear modules on known mixtures of experts.
    """

    @property
    def adapted_per_rank(self) -> int:
        return sum(d_in + d_out for d_in, d_out in self.adapted.values())

    @property
    def expert_params(self) -> int:
        return sum(map(prod, self.experts.values()))

    @property
    def experts_per_rank(self) -> int:
        """Parameters of PEFT's `target_parameters` on the experts at rank 1: A and B for each."""
        return sum(prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in self.experts.values())


def meta_model(config_path: Path) -> nn.Module:
    """The causal language model of a config.json on the meta device, without weights.

    Raises ValueError, one line, if transformers cannot build it.
    """
    config = dict(read_config(config_path))
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    except Exception as error:
        raise ValueError(
            f"model.path: transformers builds no causal language model from {config_path}: {' '.join(str(error).split())[:200]}"
        ) from error


ROUTERS = ("gate", "router")
"""Names of linear modules that choose experts; adapters leave the choice as it is."""


def adaptable(net: nn.Module, path: str) -> dict[str, list[int]]:
    """Name -> [d_in, d_out] of the linear modules that every layer has once, as scales name them.

    Raises ValueError, one line, if there are none, as where a model has Conv1D instead.
    """
    output, layers = net.get_output_embeddings(), net.config.get_text_config().num_hidden_layers
    shapes: dict[str, list[list[int]]] = {}
    for name, m in net.named_modules():
        if isinstance(m, nn.Linear) and m is not output:
            shapes.setdefault(name.rpartition(".")[2], []).append([m.in_features, m.out_features])
    found = {
        name: these[0]
        for name, these in shapes.items()
        if len(these) == layers and these.count(these[0]) == layers and name not in ROUTERS
    }
    kinds = sorted({type(m).__name__ for m in net.modules()})
    fix = f"its modules are {', '.join(kinds)}"
    require(len(found) > 0, "model.path", path, "a model whose layers have linear modules (nn.Linear)", fix)
    return found


def reach(model: Model, config_path: Path) -> Reach:
    """Counts what the scale adapts and what could be adapted.

    Raises ValueError, one line, if scale and model disagree on parameters, layers, or the modules
    and their shapes, or if vLLM serves no adapters of the model.
    """
    check_served(model.path, read_config(config_path))
    net = meta_model(config_path)
    params, layers = sum(p.numel() for p in net.parameters()), net.config.get_text_config().num_hidden_layers
    _check(model, net, params, layers)
    adapted = target_shapes(net, model.modules, model.layers)
    output = net.get_output_embeddings()
    linear = [m for m in net.modules() if isinstance(m, nn.Linear) and m is not output]
    return Reach(
        params,
        layers,
        adapted,
        sum(m.in_features + m.out_features for m in linear),
        {name: tuple(p.shape) for name, p in net.named_parameters() if p.dim() == 3},
        _all_linear_per_rank(net),
    )


def _check(model: Model, net: nn.Module, params: int, layers: int) -> None:
    linear = {name.rpartition(".")[2] for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    for name in model.modules:
        if name not in linear:
            raise ValueError(
                f"model.modules: got {name!r}, allowed: {', '.join(sorted(linear))}, the linear modules of {model.path}"
                " (fused experts are none)"
            )
    if model.layers != layers:
        raise ValueError(f"model.layers: got {model.layers}, allowed: {layers}, the layers of {model.path}")
    if model.base_params != params:
        raise ValueError(
            f"model.base_params: got {model.base_params}, allowed: {params}, the parameters of {model.path}"
        )


def _all_linear_per_rank(net: nn.Module) -> int:
    """Parameters of PEFT's `all-linear` at rank 1. It changes `net`, so it is called last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that it ignores the doubled rank of gate and up, yet applies it
        wrapped = get_peft_model(net, LoraConfig(r=1, target_modules="all-linear"))
    return sum(p.numel() for name, p in wrapped.named_parameters() if "lora_" in name)


def describe(found: Reach) -> str:
    """One line on what the scale adapts and, if there are experts, on what other settings would."""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in found.adapted)
    share = found.adapted_per_rank / found.base_params
    text = (
        f"{found.base_params:,} parameters, {found.layers} layers; {', '.join(kinds)} adapted: "
        f"{found.adapted_per_rank:,} per rank, {share:.4%} of the base"
    )
    if not found.experts:
        return text
    fused = {name.rpartition(".")[2]: shape for name, shape in found.experts.items()}
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in fused.items())
    return (
        f"{text}; experts are {len(found.experts)} fused tensors ({shapes}), {found.expert_params / found.base_params:.1%} of the "
        f"base and no linear modules: with target_parameters on them {found.adapted_per_rank + found.experts_per_rank:,} per rank, "
        f"with PEFT's all-linear {found.all_linear_per_rank:,}"
    )
