"""What policy and value workers share: a frozen base, and runs that are attached to it.

Upstream's worker methods (`forward`, `append`, `fit`) act on `self.trainer` and the active adapter.
`activate` points both at a run and swaps in the run's random state, so that runs do not affect each
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_map

from rankrl.adapter.host import AdapterHost
from rankrl.ppo.imports import uncollected
from rankrl.ppo.schedules import lr_share
from rankrl.ppo.strategy import AdapterOptimizer, AdapterStrategy
from rankrl.ppo.transport import send_tensors_as_arrays
from rankrl.recipe.init_section import Init
from rankrl.recipe.optimizer_section import Optimizer as OptimizerSection
from rankrl.recipe.rank_table import ModuleRank, Shapes
from rankrl.recipe.schema import Brakes as BrakesSection

Call = tuple[str, list[dict[str, Any]]]
"""A method name, and the keyword arguments of each call to the method."""


@dataclass(frozen=True)
class AdapterSpec:
    """What a worker needs to know of a run to build its adapter."""

    name: str
    args: SimpleNamespace
    """OpenRLHF's namespace for the run."""
    table: list[ModuleRank]
    """The adapted modules with their ranks, the same on every worker."""
    seed: int
    lr_ratio: float
    """Learning rate of B divided by that of A (LoRA+), if both are trained."""
    optimizer_steps: int
    updates: int
    """Optimizer steps of a rollout."""
    init: Init = field(default_factory=Init)
    trained: str = "both"
    """What of the adapter is trained: `both` factors, or `b` alone."""
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    lr_shape: str = "constant"
    """Learning rate after the warm-up."""
    lr_final: float = 0.1
    """Share of the learning rate at the end of a cosine."""
    warmup_offset: int = 1
    """What the first step of a warm-up of n takes of the rate, in units of 1 / n."""
    brakes: BrakesSection = field(default_factory=BrakesSection)
    """Brakes of the policy."""
    average: str | None = None
    """How the snapshots of the adapter are averaged; None without an average."""
    anchor_rate: float = 0.0
    """Share of the way to the policy that its anchor goes after an update; 0 without an anchor."""
    constant_normaliser: bool = False
    """Whether the policy's loss is divided by the tokens that samples could have at most."""


@dataclass
class RunState:
    """Everything that a worker holds of one run."""

    spec: AdapterSpec
    trainer: Any
    """Upstream's PPO trainer of this run: loss, optimizer, scheduler, replay buffer."""
    optimizer: AdapterOptimizer
    scheduler: Any
    rng: torch.Tensor
    """The run's random state on this worker."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only one kind of worker holds: the value head, or the previous adapter and the anchor of
    the KL."""

    def new_rollout(self) -> None:
        """Spreads the micro-batches of the replay buffer over the run's optimizer steps."""
        accumulate = len(self.trainer.replay_buffer) // self.spec.updates
        self.trainer.strategy.accumulated_gradient = accumulate
        self.optimizer.new_rollout(accumulate)


class RunHost:
    """A mixin that lets upstream's model actors hold several runs.

    Subclasses set `self.host` and `self.runs`, and say which parameters a run trains.
    """

    host: AdapterHost
    runs: dict[str, RunState]
    trainer: Any

    def join(self, strategy: AdapterStrategy) -> None:
        """Joins the process group of the workers."""
        if not torch.cuda.is_available():
            from rankrl.ppo import cpu

            with uncollected():  # DeepSpeed is imported here
                cpu.use_deepspeed()
        send_tensors_as_arrays()
        self._setup_distributed(strategy)  # type: ignore[attr-defined]

    def shapes(self) -> Shapes:
        """(d_in, d_out) of the modules that may be adapted, by name."""
        return self.host.shapes

    def call(self, name: str, calls: list[Call]) -> Any:
        """Makes the calls for one run, each method once per row.

        Returns the last result.
        """
        return self.call_batch(name, calls)[-1]

    def call_batch(self, name: str, calls: list[Call]) -> list[Any]:
        """Makes the calls for one run, each method once per row.

        Returns the results of the last method, one per row.
        """
        with self.activate(name):
            for method, rows in calls:
                results = [getattr(self, method)(**row) for row in rows]
        return results

    @contextmanager
    def activate(self, name: str) -> Iterator[RunState]:
        """Context in which a run's adapter, trainer and random state are the active ones."""
        run = self.runs[name]
        self.host.activate(name)
        self.trainer = run.trainer
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(run.rng)
            yield run
            run.rng = torch.get_rng_state()

    def detach(self, name: str) -> None:
        """Removes a run and its adapter. The base stays."""
        self.runs.pop(name, None)
        self.host.detach(name)

    def parameters_of(self, run: RunState) -> dict[str, torch.nn.Parameter]:
        """The parameters of a run's adapter by name, in a fixed order; a frozen A is among them."""
        factors = self.host.factors(run.spec.name, run.spec.table)
        return {
            f"{module}.lora_{side}": p for module, pair in factors.items() for side, p in zip("AB", pair, strict=True)
        }

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """A copy of the run's parameters on the CPU, by name."""
        return {key: p.detach().cpu().clone() for key, p in self.parameters_of(self.runs[name]).items()}

    def state(self, name: str) -> dict[str, Any]:
        """Tensors on the CPU and plain values, from which `restore` continues the run.

        What all workers have in common only worker 0 gives: the others give their random state, and
        their part of a sharded optimizer.
        """
        run = self.runs[name]
        state: dict[str, Any] = {"rng": run.rng}
        first = self.strategy.is_rank_0()  # type: ignore[attr-defined]
        if first or run.optimizer.sharded:
            state["optimizer"] = run.optimizer.state_dict()
        if first:
            state |= {
                "weights": self.weights(name),
                "previous": run.extra.get("previous", {}),
                "anchor": run.extra.get("anchor", {}),
                "snapshots": run.extra.get("snapshots", {}),
                "scheduler": run.scheduler.state_dict(),
            }
        return tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)

    def restore(self, name: str, common: dict[str, Any], own: dict[str, Any]) -> None:
        """Continues the run from worker 0's state and this worker's own."""
        run, state = self.runs[name], {**common, **own}
        with torch.no_grad():
            for key, p in self.parameters_of(run).items():
                p.copy_(state["weights"][key])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.rng = state["rng"]
        if state["previous"]:
            run.extra["previous"] = state["previous"]
        run.extra |= {key: state[key] for key in ("anchor", "snapshots") if state.get(key)}


def move_anchor(anchor: dict[str, torch.Tensor], now: dict[str, torch.Tensor], rate: float) -> None:
    """Moves an anchor's factors by a share `rate` of the way to `now`, in place.

    It averages A and B, not their product: delta W of the anchor is no average of those of the
    steps, but has their rank.
    """
    with torch.no_grad():
        for key, tensor in anchor.items():
            tensor.lerp_(now[key].to(tensor.device), rate)


def weight_max(run: RunState) -> float:
    """The largest absolute weight that a run trains here; NaN or infinity if one of them is."""
    return torch.nn.utils.get_total_norm(run.optimizer.parameters, float("inf")).item()


class RateSchedule(LambdaLR):
    """A learning-rate schedule times a factor, which stands in its state."""

    factor = 1.0

    def get_lr(self) -> list[Any]:
        shares = [share(self.last_epoch) for share in self.lr_lambdas]
        return [self.factor * lr * share for lr, share in zip(self.base_lrs, shares, strict=True)]

    def scale(self, factor: float) -> None:
        """Sets the factor, for the optimizer step that comes next, too."""
        self.factor = factor
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def scheduler(optimizer: AdapterOptimizer, spec: AdapterSpec, warmup_ratio: float) -> RateSchedule:
    """The learning-rate schedule of a run, whose warm-up is a share of its optimizer steps."""
    steps = spec.optimizer_steps
    shape, warmup, rest = spec.lr_shape, math.ceil(steps * warmup_ratio), (spec.warmup_offset, spec.lr_final)
    return RateSchedule(optimizer.adam, lambda step: lr_share(shape, step, steps, warmup, *rest))


def initial_rng(seed: int) -> torch.Tensor:
    """The random state at the start of a run."""
    return torch.Generator().manual_seed(seed).get_state()
