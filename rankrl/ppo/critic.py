"""The value worker: OpenRLHF's `CriticModelActor` with a frozen base.

Each run brings a value adapter and a value head.
"""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models import get_llm_for_sequence_regression
from openrlhf.trainer.ray.ppo_critic import CriticModelActor, CriticPPOTrainer
from torch import nn

from rankrl.adapter.factors import starting_factors
from rankrl.adapter.host import AdapterHost
from rankrl.ppo.replay import ReplayBuffer
from rankrl.ppo.strategy import AdapterOptimizer, AdapterStrategy
from rankrl.ppo.upstream import raw
from rankrl.ppo.workers import AdapterSpec, RunHost, RunState, initial_rng, scheduler, weight_max


class ValueHead(nn.Linear):
    """Linear layer from hidden states [.., H] in any precision to values [.., 1] in fp32."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.to(self.weight.dtype))


def value_head(hidden_size: int, seed: int) -> ValueHead:
    """A value head with normal weights of standard deviation 1 / (H + 1), drawn from `seed`.

    This is upstream's initialisation; H is the hidden size.
    """
    head = ValueHead(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=1 / (hidden_size + 1), generator=generator)
    return head


class ValueWorker(RunHost, raw(CriticModelActor)):  # type: ignore[misc]
    """A worker that holds one base and the value adapters and heads of the attached runs."""

    def init_model_from_pretrained(
        self, strategy: AdapterStrategy, path: str, modules: dict[str, list[int]], layers: int
    ) -> None:
        """Loads the base from directory `path`. Runs are added later, by `attach`."""
        self.join(strategy)
        args = strategy.args
        base = get_llm_for_sequence_regression(
            path,
            "critic",
            attn_implementation=args.ds.attn_implementation,
            param_dtype=args.ds.param_dtype,
            ds_config=strategy.get_ds_eval_config(),
            value_head_prefix=args.ds.value_head_prefix,
        )
        if args.actor.gradient_checkpointing_enable:
            base.enable_input_require_grads()
            base.gradient_checkpointing_enable({"use_reentrant": args.actor.gradient_checkpointing_reentrant})
        base.requires_grad_(False).to(getattr(torch, strategy.model.dtype))
        self.engine = strategy.prepare(base)  # keeps ZeRO's hooks on the base alive
        strategy.rows(base.base_model)
        self.hold(base, AdapterHost(base, modules, layers, strategy.adapters_as_base))

    def hold(self, critic: nn.Module, host: AdapterHost) -> None:
        """Uses `critic`, upstream's critic model, whose decoder carries the adapters of `host`."""
        self.critic, self.host, self.runs = critic, host, {}
        self.critic.train = host.train

    def attach(self, spec: AdapterSpec) -> int:
        """Builds the run's value adapter, value head and optimizer.

        Returns the number of trained parameters.
        """
        self.host.attach(spec.name, spec.table, *starting_factors(spec.init, spec.seed, spec.table, None))
        factors = [p for pair in self.host.factors(spec.name, spec.table).values() for p in pair]
        head = value_head(self.critic.config.hidden_size, spec.seed).to(factors[0].device)
        strategy, cfg = self.strategy.for_run(spec.args), spec.args.critic
        trained = [*factors, head.weight]
        groups = [{"params": trained, "lr": cfg.adam.lr}]
        optimizer = AdapterOptimizer(groups, cfg.adam, cfg.max_norm, half=strategy.half)
        schedule = scheduler(optimizer, spec, cfg.lr_warmup_ratio)
        trainer = CriticPPOTrainer(
            strategy,
            critic=self.critic,
            critic_optim=optimizer,
            critic_scheduler=schedule,
            micro_train_batch_size=spec.args.train.micro_batch_size,
            value_clip=cfg.value_clip,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer.replay_buffer = ReplayBuffer(in_order=strategy.packed)
        self.runs[spec.name] = RunState(spec, trainer, optimizer, schedule, initial_rng(spec.seed), {"head": head})
        return sum(p.numel() for p in trained)

    def activate(self, name: str) -> Any:
        setattr(self.critic, self.critic.value_head_prefix, self.runs[name].extra["head"])
        return super().activate(name)

    def fit(self) -> dict[str, Any]:
        """Upstream's update, and the largest weight after it.

        Rate and gradient norm are those of the last optimizer step, as the policy's are. Upstream
        would average what it reads at each micro-batch, before the step is due.
        """
        run = self.runs[self.host.model.active_adapter]
        run.new_rollout()
        status = {**super().fit(), "critic_weight_max": weight_max(run)}
        return {**status, "critic_grad_norm": run.optimizer.grad_norm, "critic_lr": run.scheduler.get_last_lr()[0]}

    def parameters_of(self, run: RunState) -> dict[str, torch.nn.Parameter]:
        return {**super().parameters_of(run), "head": run.extra["head"].weight}
