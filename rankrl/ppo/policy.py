"""The policy worker: OpenRLHF's `PolicyModelActor` with a frozen base and an adapter per run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor
from peft import get_peft_model_state_dict
from torch import nn

from rankrl.adapter.delta import Factors, delta_norm, module_size
from rankrl.adapter.eva import Shapes, eva
from rankrl.adapter.factors import starting_factors
from rankrl.adapter.first_step import Base, Draw, first_steps
from rankrl.adapter.gradient import policy_gradient
from rankrl.adapter.host import AdapterHost, doubled, lora_config
from rankrl.adapter.start import Start
from rankrl.adapter.watch import Batch, Reduce, Samples, walk_activations, walk_gradients
from rankrl.adapter.weights import principal_rows, start_from_weights
from rankrl.ppo.actor import AdapterActor
from rankrl.ppo.averaging import Averaging
from rankrl.ppo.brakes import Brakes
from rankrl.ppo.instruments import Instruments
from rankrl.ppo.replay import ReplayBuffer
from rankrl.ppo.serving import Payload, pack, peft_names
from rankrl.ppo.spectral import Pair, Spectral
from rankrl.ppo.strategy import AdapterOptimizer, AdapterStrategy
from rankrl.ppo.upstream import raw
from rankrl.ppo.workers import AdapterSpec, RunHost, RunState, initial_rng, move_anchor, scheduler, weight_max
from rankrl.recipe.first_step import FirstStep
from rankrl.recipe.init_section import FROM_WEIGHTS, Init


def added_up(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor summed over workers, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gathered(values_K: torch.Tensor) -> torch.Tensor:
    """The vectors [W, K] of all workers."""
    rows = [torch.empty_like(values_K) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, values_K)
    return torch.stack(rows)


NOTHING_TRAINED = {
    "metrics": {"policy_loss": 0.0},
    "weights": {"policy_loss": None},
    "num_samples": 0.0,
    "num_action_tokens": 0.0,
}
"""What a micro-batch that is not trained on adds to upstream's status: a weight of 0."""


def divide_by(loss: nn.Module, tokens: int, optimizer: AdapterOptimizer) -> None:
    """Lets upstream's policy loss divide an optimizer step's sum by `tokens`.

    It would divide by the response tokens of the step. A micro-batch is divided by its share.
    """

    def fixed(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "batch_num_tokens": tokens / optimizer.accumulate}

    loss.register_forward_pre_hook(fixed, with_kwargs=True)


def factor_groups(pairs: list[Pair], lr: float, lr_ratio: float, trained: str) -> list[dict[str, Any]]:
    """An optimizer's parameter groups: A at `lr` and B at `lr_ratio` times it, or B at `lr`."""
    rows, columns = [a for a, _, _ in pairs], [b for _, b, _ in pairs]
    if trained == "b":
        return [{"params": columns, "lr": lr}]
    return [{"params": rows, "lr": lr}, {"params": columns, "lr": lr * lr_ratio}]


def optimizer_of(spec: AdapterSpec, groups: list[dict[str, Any]], pairs: list[Pair]) -> Spectral | None:
    """The optimizer of a run that has another one than AdamW."""
    section = spec.optimizer
    return Spectral(groups, pairs, section.momentum, section.weight_decay) if section.method == "spectral" else None


class PolicyTrainer(ActorPPOTrainer):
    """Upstream's PPO update of one run.

    Rollout engines are synchronised elsewhere, by sending them the adapter.
    """

    instruments: Instruments

    def _init_vllm_sync_group(self, backend: str) -> None:
        """Does nothing: no weights are broadcast, so no group with the engines is needed."""

    def training_step(self, experience: Any, *args: Any) -> dict[str, Any]:
        """Upstream's step on a micro-batch; none once the KL brake has stopped the rollout."""
        if not self.actor_optim.brakes.stopped:
            with self.instruments.watching(self.actor):
                return super().training_step(experience, *args)
        self.strategy.optimizer_step(self.actor_optim, self.actor, self.actor_scheduler, name="actor")
        return NOTHING_TRAINED


class PolicyWorker(RunHost, Averaging, raw(PolicyModelActor)):  # type: ignore[misc]
    """A worker that holds one base and the policy adapters of the attached runs."""

    def init_model_from_pretrained(
        self, strategy: AdapterStrategy, path: str, modules: dict[str, list[int]], layers: int
    ) -> None:
        """Loads the base from directory `path`. Runs are added later, by `attach`."""
        self.join(strategy)
        self.actor = AdapterActor(path, strategy.args, strategy)
        self.host = AdapterHost(self.actor.model, modules, layers, strategy.adapters_as_base)
        self.runs = {}

    def measure(self, init: Init, rank: int, seed: int, batches: list[Batch], samples: Samples | None) -> Start | None:
        """What policy adapters of rank up to `rank` start from, by the method of `init`.

        All workers measure it together on the base; only worker 0 returns it, the others None.
        """
        self.host.train()  # as in an update: with gradient checkpointing, where it is on
        with self.host.disabled(), self.actor.alone(self.host.base):
            task = (self._logprobs, self.host.linears(), self.host.shapes)
            start = measured_start(*task, init, rank, seed, batches, samples, added_up)
        return start if self.strategy.is_rank_0() else None

    def first_steps(
        self,
        draws: list[Draw],
        rate: tuple[float, int],
        batches: list[Batch],
        samples: Samples,
        held_out: list[Batch],
        parts: int,
    ) -> dict[int, FirstStep] | None:
        """Rank -> its first optimizer step; `rate` is the reference rate and the reference rank.

        All workers measure it together on the base; only worker 0 returns it, the others None.
        """
        self.host.train()
        with self.host.disabled(), self.actor.alone(self.host.base):
            task = (self._logprobs, self._hidden, self._logits, self.host.linears(), self.host.shapes, added_up, parts)
            found = first_steps(Base(*task), draws, *rate, batches, samples, held_out)
        return found if self.strategy.is_rank_0() else None

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """The last hidden states [N, H] from which a batch's N response tokens are predicted."""
        device = torch.cuda.current_device()
        inputs = (batch.sequences_BT, batch.attention_mask_BT, batch.action_mask_BA * batch.real_B[:, None])
        ids_BT, attention_BT, action_BA = (tensor.to(device) for tensor in inputs)
        hidden_BTH = self.host.base.base_model(ids_BT, attention_mask=attention_BT).last_hidden_state
        return hidden_BTH[:, :-1][action_BA.bool()]

    def _logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of the distribution that is sampled from, fp32."""
        return self.host.base.get_output_embeddings()(hidden_NH).float() / self.actor.temperature

    def _logprobs(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities [B, A] of a batch, differentiable if gradients are enabled."""
        device = torch.cuda.current_device()
        inputs = (batch.sequences_BT, batch.action_mask_BA, batch.attention_mask_BT)
        return self.actor(*(tensor.to(device) for tensor in inputs))

    def attach(self, spec: AdapterSpec, start: Start | None = None) -> int:
        """Builds the run's adapter and optimizer. Returns the number of trained parameters.

        `start` is what the adapter starts from if its init needs the base.
        """
        factors = starting_factors(spec.init, spec.seed, spec.table, start)
        self.host.attach(spec.name, spec.table, *factors, spec.trained)
        self.actor.model = self.host.model
        strategy, cfg = self.strategy.for_run(spec.args), spec.args.actor
        pairs = self._pairs(spec)
        groups = factor_groups(pairs, cfg.adam.lr, spec.lr_ratio, spec.trained)
        other = optimizer_of(spec, groups, pairs)
        brakes, instruments = Brakes(spec.brakes, added_up), Instruments(gathered)
        optimizer = AdapterOptimizer(groups, cfg.adam, cfg.max_norm, 1, brakes, instruments, other, strategy.half)
        schedule = scheduler(optimizer, spec, cfg.lr_warmup_ratio)
        trainer = PolicyTrainer(
            strategy,
            self.actor,
            ema_model=None,
            actor_optim=optimizer,
            actor_scheduler=schedule,
            micro_train_batch_size=spec.args.train.micro_batch_size,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        brakes.watch(trainer.actor_loss_fn)
        instruments.watch(trainer.actor_loss_fn)
        trainer.instruments = instruments
        trainer.replay_buffer = ReplayBuffer(in_order=strategy.packed)
        if spec.constant_normaliser:
            most_tokens = spec.args.train.batch_size * spec.args.rollout.max_new_tokens
            divide_by(trainer.actor_loss_fn, most_tokens, optimizer)
        run = RunState(spec, trainer, optimizer, schedule, initial_rng(spec.seed))
        if spec.anchor_rate:
            run.extra["anchor"] = self._weights(run)
        self.runs[spec.name] = run
        return sum(p.numel() for p in optimizer.parameters)

    def forward_reference(self, **batch: Any) -> torch.Tensor:
        """Log-probabilities [B, A] of the base: the same weights with the adapter off."""
        with self.host.disabled():
            return self.forward(**batch)

    def forward_previous(self, **batch: Any) -> torch.Tensor:
        """Log-probabilities [B, A] of the adapter before its last update.

        This is what a stale engine would show.
        """
        return self._forward_with("previous", batch)

    def forward_anchor(self, **batch: Any) -> torch.Tensor:
        """Log-probabilities [B, A] of the anchor that follows the adapter."""
        return self._forward_with("anchor", batch)

    def _forward_with(self, which: str, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities [B, A] with other weights of the active adapter, if there are any."""
        run = self.runs[self.host.model.active_adapter]
        now = self._weights(run)
        self._load(run, run.extra.get(which, now))
        try:
            return self.forward(**batch)
        finally:
            self._load(run, now)

    def fit(self, kl_ctl: float = 0, snapshot: int = 0) -> dict[str, Any]:
        """Upstream's update, the largest weight after it, and what brakes and instruments read.

        The adapter before it is kept for `forward_previous` and `step_back`, that after it for the
        average, as the one of PPO step `snapshot` if that is not 0.
        """
        run = self.runs[self.host.model.active_adapter]
        run.extra["previous"] = self._weights(run)
        run.new_rollout()
        brakes, instruments = run.optimizer.brakes, run.trainer.instruments
        brakes.new_rollout()
        instruments.new_update()
        status = {**super().fit(kl_ctl), **brakes.counts(), **instruments.readings()}
        move_anchor(run.extra.get("anchor", {}), self.parameters_of(run), run.spec.anchor_rate)
        if snapshot:
            self.keep_snapshot(run, snapshot)
        return {**status, "actor_weight_max": weight_max(run), "delta_norm": delta_norm(self._update(run))}

    def step_back(self) -> bool:
        """Loads the adapter before its last update. Returns whether its weights are finite."""
        run = self.runs[self.host.model.active_adapter]
        if previous := run.extra.get("previous"):  # absent while only the critic has learned
            self._load(run, previous)
        return math.isfinite(weight_max(run))

    def forget_rollout(self) -> None:
        """Drops the rollout of a step in which only the critic learns.

        Upstream would train on it later, when it is stale.
        """
        self.trainer.replay_buffer.clear()

    def set_clip(self, low: float, high: float) -> None:
        """Sets the clip range of this step in the loss."""
        self.trainer.actor_loss_fn.clip_eps_low, self.trainer.actor_loss_fn.clip_eps_high = low, high

    def set_rate(self, factor: float) -> None:
        """Multiplies the scheduled rate, from the next optimizer step on."""
        self.trainer.actor_scheduler.scale(factor)

    def payload(self, dtype: str) -> Payload | None:
        """The active adapter in the form that engines load; None on all workers but worker 0.

        Where A is frozen, payloads after the first have B alone.
        """
        run = self.runs[self.host.model.active_adapter]
        if not self.strategy.is_rank_0():
            return None
        scales = {row.module: self.host.layer(row.module).scaling[run.spec.name] for row in run.spec.table}
        a_stays, b_alone = run.spec.trained == "b", run.extra.get("a_sent", False)
        run.extra["a_sent"] = a_stays
        return pack(self.host.update(run.spec.name, run.spec.table), scales, dtype, a_stays, b_alone)

    def previous_payload(self, dtype: str) -> Payload | None:
        """`payload` of the adapter before its last update."""
        run = self.runs[self.host.model.active_adapter]
        now = self._weights(run)
        self._load(run, run.extra.get("previous", now))
        try:
            return self.payload(dtype)
        finally:
            self._load(run, now)

    def update_sizes(self) -> dict[str, dict[str, float]]:
        """Norm and effective rank of the active adapter's delta W, by module."""
        update = self._update(self.runs[self.host.model.active_adapter])
        with torch.no_grad():
            return {module: module_size(*factors) for module, factors in update.items()}

    def peft_files(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The active adapter as PEFT saves it: (adapter_config, tensors)."""
        name = self.host.model.active_adapter
        if name in self.host.offset:
            table = self.runs[name].spec.table
            served = table if name in self.host.frozen else doubled(table)
            return {**lora_config(served).to_dict(), "inference_mode": True}, peft_names(self.host.update(name, table))
        config = {**self.host.model.peft_config[name].to_dict(), "inference_mode": True}
        tensors = get_peft_model_state_dict(self.host.model, adapter_name=name, save_embedding_layers=False)
        return config, {key: t.detach().cpu().clone() for key, t in tensors.items()}

    def _update(self, run: RunState) -> dict[str, Factors]:
        """Module -> (A, B, scale) of the run's delta W."""
        update = self.host.update(run.spec.name, run.spec.table)
        return {m: (a, b, self.host.layer(m).scaling[run.spec.name]) for m, (a, b) in update.items()}

    def restore(self, name: str, common: dict[str, Any], own: dict[str, Any]) -> None:
        super().restore(name, common, own)
        self.runs[name].extra.pop("a_sent", None)  # the A of the checkpoint is the one that counts

    def _pairs(self, spec: AdapterSpec) -> list[Pair]:
        """(A, B, scale) of each module, the parameters themselves."""
        factors = self.host.factors(spec.name, spec.table)
        return [(a, b, self.host.layer(m).scaling[spec.name]) for m, (a, b) in factors.items()]

    def _weights(self, run: RunState) -> dict[str, torch.Tensor]:
        """A copy of the run's adapter as it is."""
        return {key: p.detach().clone() for key, p in self.parameters_of(run).items()}

    def _load(self, run: RunState, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for key, p in self.parameters_of(run).items():
                p.copy_(weights[key])


PRINCIPAL = 32
"""Top directions of W that `principal_share` refers to, also for smaller adapters."""


def measured_start(
    policy: Callable[[Batch], torch.Tensor],
    linears: dict[str, nn.Linear],
    shapes: Shapes,
    init: Init,
    rank: int,
    seed: int,
    batches: list[Batch],
    samples: Samples | None,
    reduce: Reduce,
) -> Start:
    """What adapters of rank up to `rank` start from, by the method of `init`.

    `policy` gives log-probabilities [B, A] of a batch. `batches` are those of this worker, the same
    number on every worker; `samples` are those of all workers. `reduce` sums a tensor over workers.
    """
    if init.method in FROM_WEIGHTS:
        return start_from_weights(linears, init.method, rank)
    assert samples is not None
    principal = principal_rows(linears, max(PRINCIPAL, init.off_principal))
    method, walk = (eva, walk_activations) if init.method == "eva" else (policy_gradient, walk_gradients)
    return method(partial(walk, policy, linears, batches), shapes, init, rank, seed, principal, samples, reduce)
