"""What adapters can reach in a model, counted on the meta device: no weights, no memory, seconds even at 235B."""

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
from rankrl.recipe.architecture import read_config
from rankrl.recipe.scale import Model


@dataclass(frozen=True)
class Reach:
    """Parameters, and what a LoRA of rank 1 on a part of the model trains; both parts of a LoRA grow with the rank."""

    base_params: int
    layers: int
    adapted: dict[str, tuple[int, int]]
    """Modules that the scale adapts: full name -> (d_in, d_out)."""
    linear_per_rank: int
    """On every linear module but the output layer."""
    experts: dict[str, tuple[int, ...]]
    """Parameters that hold all experts of a layer [experts, .., ..] and are no modules: full name -> shape."""
    all_linear_per_rank: int
    """What PEFT trains when told `all-linear`: since 0.21 on known mixtures of experts more than linear modules."""

    @property
    def adapted_per_rank(self) -> int:
        return sum(d_in + d_out for d_in, d_out in self.adapted.values())

    @property
    def expert_params(self) -> int:
        return sum(map(prod, self.experts.values()))

    @property
    def experts_per_rank(self) -> int:
        """Of PEFT's `target_parameters` on them: A and B for each expert."""
        return sum(prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in self.experts.values())


def meta_model(config_path: Path) -> nn.Module:
    """The causal language model of a config.json, without weights. Raises ValueError for an architecture transformers lacks."""
    config = dict(read_config(config_path))
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    except Exception as error:
        raise ValueError(
            f"model.path: transformers builds no causal language model from {config_path}: {' '.join(str(error).split())[:200]}"
        ) from error


def reach(model: Model, config_path: Path) -> Reach:
    """Counts what the scale adapts and what could be adapted.

    Raises ValueError, one line, where scale and model disagree on parameters, layers, or the modules and their shapes.
    """
    net = meta_model(config_path)
    params, layers = sum(p.numel() for p in net.parameters()), net.config.num_hidden_layers
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
    """Wraps `net` in PEFT's adapters, so it comes last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it ignores the doubled rank of gate and up, and applies it
        wrapped = get_peft_model(net, LoraConfig(r=1, target_modules="all-linear"))
    return sum(p.numel() for name, p in wrapped.named_parameters() if "lora_" in name)


def describe(found: Reach) -> str:
    """One line: what the scale adapts, and where there are experts, what other ways would reach."""
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
