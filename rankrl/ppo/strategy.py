"""OpenRLHF's DeepSpeed strategy for frozen bases: the base under ZeRO, each adapter with an optimizer of its own.

DeepSpeed shards and gathers the base and knows nothing of adapters, so any number of runs, of any rank, can share one base.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from openrlhf.utils.deepspeed import DeepspeedStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer

SHARD_FROM = 50_000_000
"""Parameters from which workers share an adapter's optimizer state (0.4 GB of Adam's moments) instead of each holding all of it."""


class AdapterOptimizer:
    """AdamW over one adapter's fp32 parameters, with its own accumulation, gradient reduction and clipping.

    Equal to DeepSpeed's: the mean of the micro batches' gradients, averaged over workers, scaled down to `max_norm` (0: never).
    """

    def __init__(self, groups: list[dict[str, Any]], adam: SimpleNamespace, max_norm: float, accumulate: int):
        options = {
            "lr": adam.lr,
            "betas": tuple(adam.betas),
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
            "fused": True,
        }
        size = sum(p.numel() for group in groups for p in group["params"])
        self.sharded = dist.get_world_size() > 1 and size >= SHARD_FROM
        self.adam: Any = torch.optim.AdamW(groups, **options)
        if self.sharded:
            self.adam = ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **options)
        self.parameters = [p for group in groups for p in group["params"]]
        self.max_norm, self.accumulate = max_norm, accumulate
        self.micro_steps, self.grad_norm = 0, 0.0

    def micro_step(self) -> bool:
        """Counts a backward pass; at the end of a window takes the optimizer step. Returns whether it did."""
        self.micro_steps += 1
        if self.micro_steps % self.accumulate:
            return False
        self._reduce()
        bound = self.max_norm or float("inf")
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, bound).item()
        self.adam.step()
        self.adam.zero_grad()
        return True

    def _reduce(self) -> None:
        """Averages the gradients over workers, in one message."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if dist.get_world_size() == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in self.parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, grad in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = grad.view_as(p)

    @property
    def local(self) -> torch.optim.Optimizer:
        """What of the optimizer this worker holds."""
        return self.adam.optim if self.sharded else self.adam

    def state_dict(self) -> dict[str, Any]:
        """This worker's part; all workers save and load together."""
        self._copy_options(self.adam, self.local)
        return {"adam": self.local.state_dict(), "micro_steps": self.micro_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.local.load_state_dict(state["adam"])
        for ours, loaded in zip(
            self.adam.param_groups, self.local.param_groups, strict=True
        ):  # the sharded one keeps two lists
            ours.update({key: value for key, value in loaded.items() if key != "params"})
        self.micro_steps = state["micro_steps"]

    def _copy_options(self, source: torch.optim.Optimizer, to: torch.optim.Optimizer) -> None:
        """Learning rates, of which the sharded optimizer keeps two lists that it brings together at a step only."""
        for given, taken in zip(source.param_groups, to.param_groups, strict=True):
            taken.update({key: value for key, value in given.items() if key != "params"})


class AdapterStrategy(DeepspeedStrategy):
    """One per worker process, for the base; `for_run` gives the view of one run, with its arguments and batch sizes."""

    def __init__(self, args: SimpleNamespace, deepspeed: dict[str, Any], dtype: str, share_prefixes: bool):
        super().__init__(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        self.deepspeed, self.dtype, self.share_prefixes = deepspeed, dtype, share_prefixes

    def get_ds_eval_config(self, offload: bool = False) -> dict[str, Any]:
        """Upstream's configuration of a frozen model with the scale's file merged over it.

        ZeRO-1 and ZeRO-2 shard gradients and optimizer states, of which a frozen base has none: DeepSpeed refuses them without an
        optimizer, and upstream uses stage 0 there, as here.
        """
        config = super().get_ds_eval_config(offload)
        stage = config["zero_optimization"]["stage"]
        world_size = dist.get_world_size() if dist.is_initialized() else 1  # without a group, rankrl doctor asks
        config["train_batch_size"] = config["train_micro_batch_size_per_gpu"] * world_size  # the base never trains
        merged = merge(config, self.deepspeed)
        merged["zero_optimization"]["stage"] = stage
        merged["bf16"]["enabled"] = self.dtype == "bfloat16"
        return merged

    def for_run(self, args: SimpleNamespace) -> AdapterStrategy:
        view = copy.copy(self)
        view.args, view.seed = args, args.train.seed
        view.train_batch_size, view.micro_train_batch_size = args.train.batch_size, args.train.micro_batch_size
        view.accumulated_gradient = args.train.batch_size // args.train.micro_batch_size // self.world_size
        return view

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        """Upstream's, which sends every number of every log line by itself even to nobody."""
        return data if self.world_size == 1 else super().all_reduce(data, op)

    def backward(self, loss: torch.Tensor, model: Any, _optimizer: Any, **kwargs: Any) -> None:
        (loss / self.accumulated_gradient).backward()

    def optimizer_step(
        self, optimizer: AdapterOptimizer, model: Any, scheduler: Any, name: str = "", **kwargs: Any
    ) -> None:
        if optimizer.micro_step():
            scheduler.step()
        self.grad_norm = optimizer.grad_norm

    def get_grad_norm(self, model: Any) -> float:
        """Norm before clipping, of the last optimizer step."""
        return self.grad_norm


def merge(config: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`config` with `over` merged over it, nested dicts key by key."""
    merged = dict(config)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged
