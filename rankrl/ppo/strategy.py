"""OpenRLHF's DeepSpeed strategy for a frozen base, with an optimizer of its own for each adapter.

DeepSpeed shards and gathers the base under ZeRO and does not know of adapters, so any number of
runs, of any rank, can share one base.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from openrlhf.utils.deepspeed import DeepspeedStrategy

from rankrl.ppo.brakes import Brakes
from rankrl.ppo.instruments import Instruments, cosine
from rankrl.ppo.packing import PackedRows, keeps_samples_apart
from rankrl.ppo.prefixes import SharedPrefixes
from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale

SHARD_FROM = 50_000_000
"""Adapter parameters from which workers shard the optimizer state (0.4 GB of Adam's moments). With
fewer, each worker holds all of it."""


SCALED_BY = 2.0**12
"""What a loss in float16 is scaled by at first."""


class AdapterOptimizer:
    """AdamW, or another optimizer, over one adapter's fp32 parameters.

    It has its own gradient accumulation, reduction and clipping, equal to DeepSpeed's: the mean of
    the micro-batches' gradients, averaged over workers, scaled down to norm `max_norm` (0: never).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        adam: SimpleNamespace,
        max_norm: float,
        accumulate: int = 1,
        brakes: Brakes | None = None,
        instruments: Instruments | None = None,
        other: torch.optim.Optimizer | None = None,
        half: bool = False,
    ):
        """`other`, over the same groups, takes the place of AdamW. It is not sharded.

        With `half`, for a base in float16, gradients are those of a loss that is scaled up, as far
        as they stay finite: in float16 small ones would be lost.
        """
        options = {
            "lr": adam.lr,
            "betas": tuple(adam.betas),
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
            "fused": True,
        }
        size = sum(p.numel() for group in groups for p in group["params"])
        self.sharded = other is None and dist.get_world_size() > 1 and size >= SHARD_FROM
        self.adam: Any = other or torch.optim.AdamW(groups, **options)
        if self.sharded:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import, rarely needed

            self.adam = ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **options)
        self.parameters = [p for group in groups for p in group["params"]]
        self.max_norm, self.accumulate, self.brakes = max_norm, accumulate, brakes or Brakes()
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, SCALED_BY, enabled=half)
        self.micro_steps, self.grad_norm = 0, 0.0
        self.instruments = instruments
        self.first_half_P: torch.Tensor | None = None  # gradient of the first micro-batches of a step

    def new_rollout(self, accumulate: int) -> None:
        """Takes an optimizer step at every `accumulate` micro-batches from now on."""
        self.accumulate, self.micro_steps = accumulate, 0

    def micro_step(self) -> bool:
        """Counts a backward pass and, after `accumulate` of them, takes the optimizer step.

        A brake may stop the step. Returns whether it was due.
        """
        self.micro_steps += 1
        if done := self.micro_steps % self.accumulate:
            if self.instruments and not self.brakes.stopped and done == self.accumulate // 2:
                self.first_half_P = self._gradient()
            return False
        if self.brakes.stopped:
            self.brakes.pass_over()
        else:
            self._step()
        return True

    def _step(self) -> None:
        gradient_P = self._reduce()
        halves = self._cosine(gradient_P)
        self.scaler.unscale_(self.adam)
        if self.scaler.is_enabled() and self.scaler.get_scale() > 1 and not self._finite():
            self.brakes.overflow()
        else:  # also where the loss itself is no longer finite, whatever the scale
            self._step_along(halves)
        self.scaler.update()  # a smaller scale after a step that was left out
        self.adam.zero_grad()

    def _finite(self) -> bool:
        """Whether the gradients are finite, which all workers find alike after `_reduce`."""
        return all(bool(p.grad.isfinite().all()) for p in self.parameters if p.grad is not None)

    def _step_along(self, halves: float | None) -> None:
        bound = self.max_norm or float("inf")
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, bound).item()
        if self.instruments:
            self.instruments.add_step(halves, self.grad_norm > bound)
        if self.brakes.allow(self.grad_norm):
            self.adam.step()

    def _gradient(self) -> torch.Tensor:
        """A copy of this worker's gradients so far, as one vector [P]."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return torch.cat([p.grad.flatten() for p in self.parameters])

    def _reduce(self) -> torch.Tensor:
        """Averages the gradients over workers, in one all-reduce. Returns one vector [P]."""
        flat = averaged(self._gradient())
        if dist.get_world_size() > 1:
            for p, grad in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
                p.grad = grad.view_as(p)
        return flat

    def _cosine(self, gradient_P: torch.Tensor) -> float | None:
        """The cosine of two gradients on different samples, over all workers; None without them.

        They are the halves of the step's. If it has one micro-batch, it is the step before it in
        the same rollout that it is compared with.
        """
        if self.instruments is None:
            return None
        first_P, self.first_half_P = self.first_half_P, None
        if first_P is None:
            return self.instruments.cosine_with_last(gradient_P)
        first_P = averaged(first_P)
        return cosine(first_P, gradient_P - first_P)

    @property
    def local(self) -> torch.optim.Optimizer:
        """The part of the optimizer that this worker holds."""
        return self.adam.optim if self.sharded else self.adam

    def state_dict(self) -> dict[str, Any]:
        """This worker's part of the state. All workers save and load together."""
        self._copy_options(self.adam, self.local)
        return {
            "adam": self.local.state_dict(),
            "micro_steps": self.micro_steps,
            "norms": [*self.brakes.norms],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.local.load_state_dict(state["adam"])
        for ours, loaded in zip(
            self.adam.param_groups, self.local.param_groups, strict=True
        ):  # a sharded optimizer keeps two lists
            ours.update({key: value for key, value in loaded.items() if key != "params"})
        self.micro_steps = state["micro_steps"]
        self.brakes.norms.extend(state.get("norms", []))  # absent in checkpoints from before there were brakes
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def _copy_options(self, source: torch.optim.Optimizer, to: torch.optim.Optimizer) -> None:
        """Copies the learning rates and other options.

        The sharded optimizer keeps two lists of them, which it only aligns at a step.
        """
        for given, taken in zip(source.param_groups, to.param_groups, strict=True):
            taken.update({key: value for key, value in given.items() if key != "params"})


def averaged(flat: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over workers, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    return flat


class AdapterStrategy(DeepspeedStrategy):
    """The strategy of one worker process, for the base.

    `for_run` gives the view of one run, with its arguments and batch sizes.
    """

    def __init__(self, args: SimpleNamespace, deepspeed: dict[str, Any], scale: Scale):
        super().__init__(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        self.deepspeed, self.model = deepspeed, scale.model
        self.micro_batch_tokens = scale.placement.micro_batch_tokens

    def get_ds_eval_config(self, offload: bool = False) -> dict[str, Any]:
        """Upstream's configuration of a frozen model, with the scale's file merged over it.

        ZeRO-1 and ZeRO-2 shard gradients and optimizer states, which a frozen base does not have.
        DeepSpeed refuses them without an optimizer, so upstream uses stage 0 there, and so does
        this.
        """
        config = super().get_ds_eval_config(offload)
        stage = config["zero_optimization"]["stage"]
        world_size = dist.get_world_size() if dist.is_initialized() else 1  # rankrl doctor has no process group
        config["train_batch_size"] = config["train_micro_batch_size_per_gpu"] * world_size  # the base never trains
        merged = merge(config, self.deepspeed)
        merged["zero_optimization"]["stage"] = stage
        merged["bf16"]["enabled"] = self.model.dtype == "bfloat16"
        merged["fp16"] = {"enabled": self.model.dtype == "float16"}
        return merged

    def _ds_init_eval_model(self, model: Any) -> Any:
        """Upstream's, on a device that has the precision of the base, as some CPUs have no float16.

        Raises ValueError for a device without it.
        """
        from deepspeed.accelerator import get_accelerator  # here: the driver imports this file, and not DeepSpeed

        device = get_accelerator()
        allowed = f"bfloat16 or float32: DeepSpeed has no float16 on this {device.device_name()}"
        require(not self.half or device.is_fp16_supported(), "scale.model.dtype", self.model.dtype, allowed)
        return super()._ds_init_eval_model(model)

    @property
    def packed(self) -> bool:
        """Whether micro-batches are rows of tokens."""
        return self.micro_batch_tokens is not None

    @property
    def half(self) -> bool:
        """Whether gradients pass through float16."""
        return self.model.dtype == "float16"

    @property
    def adapters_as_base(self) -> bool:
        """Whether adapters are multiplied in the precision of the base."""
        return self.model.adapter_dtype == "base"

    def for_run(self, args: SimpleNamespace) -> AdapterStrategy:
        """A copy of this strategy with one run's arguments, seed and batch sizes."""
        view = copy.copy(self)
        view.args, view.seed = args, args.train.seed
        view.train_batch_size, view.micro_train_batch_size = args.train.batch_size, args.train.micro_batch_size
        return view

    def rows(self, decoder: Any) -> SharedPrefixes | PackedRows | None:
        """The hooks that make a decoder compute a micro-batch as one row; None for a padded one."""
        if self.packed:
            rows = PackedRows(decoder)
            apart = keeps_samples_apart(decoder, rows, torch.cuda.current_device())
            fix = "layers of this model mix the samples of a row: take placement.micro_batch"
            require(apart, "placement.micro_batch_tokens", self.micro_batch_tokens, "null", fix)
            return rows
        return SharedPrefixes(decoder) if self.model.share_prefixes else None

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        """Upstream's reduction, skipped if there is only one worker.

        Upstream sends every number of every log line separately, even if there is no other worker.
        """
        return data if self.world_size == 1 else super().all_reduce(data, op)

    def backward(self, loss: torch.Tensor, model: Any, _optimizer: Any, **kwargs: Any) -> None:
        _optimizer.scaler.scale(loss / self.accumulated_gradient).backward()

    def optimizer_step(
        self, optimizer: AdapterOptimizer, model: Any, scheduler: Any, name: str = "", **kwargs: Any
    ) -> None:
        if optimizer.micro_step():
            scheduler.step()
        self.grad_norm = optimizer.grad_norm

    def get_grad_norm(self, model: Any) -> float:
        """Gradient norm of the last optimizer step, before clipping."""
        return self.grad_norm


def merge(config: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with `over` merged into it, nested dicts key by key."""
    merged = dict(config)
    for key, value in over.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged
