"""PEFT adapters on a frozen base: built from a rank table, one active at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from rankrl.adapter.factors import Factors
from rankrl.recipe.rank_table import ModuleRank


def target_shapes(model: nn.Module, modules: dict[str, list[int]], layers: int) -> dict[str, tuple[int, int]]:
    """Full name -> (d_in, d_out) of every linear layer whose last name part is in `modules`.

    Raises ValueError if the model and the scale file disagree on shapes or the number of layers.
    """
    found = {
        name: (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.rpartition(".")[2] in modules
    }
    for name, shape in found.items():
        stated = tuple(modules[name.rpartition(".")[2]])
        if shape != stated:
            raise ValueError(
                f"model.modules.{name.rpartition('.')[2]}: got {list(stated)}, but {name} of the model is {list(shape)}"
            )
    if len(found) != layers * len(modules):
        raise ValueError(
            f"model.modules: got {layers} layers x {sorted(modules)}, but the model has {len(found)} such linear modules"
        )
    return found


def lora_config(table: list[ModuleRank]) -> LoraConfig:
    """PEFT's configuration of `table`.

    The most common rank and alpha are the default; modules that differ go into the patterns.
    """
    pairs = [(row.rank, row.alpha) for row in table]
    rank, alpha = max(set(pairs), key=pairs.count)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[row.module for row in table],
        rank_pattern={f"^{re.escape(row.module)}": row.rank for row in table if row.rank != rank},
        alpha_pattern={f"^{re.escape(row.module)}": row.alpha for row in table if row.alpha != alpha},
        lora_dropout=0.0,
        bias="none",
    )


def starting(name: str) -> str:
    """The name of the frozen adapter that subtracts what `name` started from."""
    return f"start-of-{name}"


def doubled(table: list[ModuleRank]) -> list[ModuleRank]:
    """`table` with twice the ranks, at the same scale."""
    return [replace(row, rank=2 * row.rank, alpha=2 * row.alpha) for row in table]


class InItsInputsPrecision(nn.Linear):
    """A linear layer without bias that computes in the precision of its input."""

    def __init__(self, weight: nn.Parameter):
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype))


class AdapterHost:
    """A frozen base that carries any number of named adapters, one active at a time.

    Adapter weights are fp32 and never merged. Switching takes the same time for any number of
    adapters; PEFT's own switches walk over all modules of all adapters.
    """

    def __init__(self, base: nn.Module, modules: dict[str, list[int]], layers: int, as_base: bool = False):
        """With `as_base`, adapters are multiplied in the precision of the base."""
        base.requires_grad_(False)
        self.base, self.model, self.as_base = base, base, as_base
        self.shapes = target_shapes(base, modules, layers)
        self.with_mode = list(base.modules())
        self.layers: dict[str, Any] = {}
        """Module -> PEFT's LoRA layer, for the modules that any adapter so far has a rank in."""
        self.offset: set[str] = set()
        """Names of the adapters whose B did not start at 0."""
        self.frozen: set[str] = set()
        """Names of the adapters whose A stays as it is: B alone is trained."""

    def attach(
        self,
        name: str,
        table: list[ModuleRank],
        rows: Factors,
        columns: Factors | None = None,
        trained: str = "both",
    ) -> None:
        """Adds an adapter that does not change the base yet, and activates it.

        A starts at `rows`, B at 0. With `columns`, B starts there, and a frozen second adapter with
        the same A and with -B acts along with it: delta W = scale (B A - B0 A0). `trained` says
        what learns: `both`, or `b`, and A is frozen.
        """
        if trained == "b":
            self.frozen.add(name)
        if columns:
            self._add(starting(name), table, rows, {module: -b for module, b in columns.items()})
            self.offset.add(name)
        self._add(name, table, rows, columns or {})
        self.activate(name)

    def _add(self, name: str, table: list[ModuleRank], rows: Factors, columns: Factors) -> None:
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(name, lora_config(table))
        else:
            self.model = get_peft_model(self.base, lora_config(table), adapter_name=name)
            self.model.train = self.train
        self.layers.update({row.module: self.base.get_submodule(row.module) for row in table})
        with torch.no_grad():
            for row in table:
                layer = self.layer(row.module)
                layer.lora_A[name].weight.copy_(rows[row.module])
                layer.lora_B[name].weight.copy_(columns.get(row.module, torch.zeros(())))
                for factors in (layer.lora_A, layer.lora_B):
                    factors[name].weight.requires_grad_(False)  # until it is activated
                    if self.as_base:
                        factors[name] = InItsInputsPrecision(factors[name].weight)
                layer.cast_input_dtype_enabled = not self.as_base

    def detach(self, name: str) -> None:
        """Removes an adapter, if it is there."""
        self.offset.discard(name)
        self.frozen.discard(name)
        for part in (name, starting(name)):
            if isinstance(self.model, PeftModel) and part in self.model.peft_config:
                self.model.delete_adapter(part)

    def activate(self, name: str) -> None:
        """Makes `name` the adapter that acts and learns from now on.

        PEFT freezes all others whenever one is added or deleted, so the last line unfreezes this
        one. Those that no longer act are not frozen again: they get no gradient.
        """
        assert isinstance(self.model, PeftModel)
        self.model.active_adapter = name
        acting = [name, starting(name)] if name in self.offset else [name]
        for layer in self.layers.values():
            layer._active_adapter = acting
            if name in getattr(layer, "lora_A", ()):  # a module of rank 0 has none
                layer.lora_A[name].weight.requires_grad_(name not in self.frozen)
                layer.lora_B[name].weight.requires_grad_()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which the base acts without any adapter."""
        self._disable(True)
        try:
            yield
        finally:
            self._disable(False)

    def _disable(self, disabled: bool) -> None:
        for layer in self.layers.values():
            layer._disable_adapters = disabled

    def train(self, mode: bool = True) -> nn.Module:
        """Sets the training mode of the base's modules and returns the model.

        OpenRLHF switches it around every forward pass. Adapters need no mode: they have no dropout.
        """
        for module in self.with_mode:
            module.training = mode
        return self.model

    def layer(self, module: str) -> Any:
        """PEFT's LoRA layer around a base module."""
        return self.layers[module]

    def factors(self, name: str, table: list[ModuleRank]) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """Module -> (A [r, d_in], B [d_out, r]), the parameters of adapter `name`."""
        layers = {row.module: self.layer(row.module) for row in table}
        return {module: (layer.lora_A[name].weight, layer.lora_B[name].weight) for module, layer in layers.items()}

    def update(self, name: str, table: list[ModuleRank]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Module -> (A, B) with delta W = scale B A, in a form that survives an engine's rounding.

        Where B started at B0 they have twice the rank: [A; A - A0] and [B - B0, B0]. PEFT's form,
        [A; A0] and [B, -B0], has the same product B A - B0 A0, but as a difference of two large
        terms that an engine has rounded. With A frozen, A and B - B0 are all of it.
        """
        factors = self.factors(name, table)
        if name not in self.offset:
            return dict(factors)
        start = {module: (a0, -b0) for module, (a0, b0) in self.factors(starting(name), table).items()}
        if name in self.frozen:
            return {module: (a, b - start[module][1]) for module, (a, b) in factors.items()}
        return {
            module: (torch.cat([a, a - start[module][0]]), torch.cat([b - start[module][1], start[module][1]], dim=1))
            for module, (a, b) in factors.items()
        }

    def linears(self) -> dict[str, nn.Linear]:
        """Module -> the base's own linear layer, without PEFT's layer around it."""
        found = {module: self.base.get_submodule(module) for module in self.shapes}
        return {module: getattr(layer, "base_layer", layer) for module, layer in found.items()}
