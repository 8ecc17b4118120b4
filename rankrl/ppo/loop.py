"""One run from its first evaluation to its last: OpenRLHF's PPO step on services that outlive the run."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from rankrl.adapter.start import Start
from rankrl.data.items import Item, step_indices
from rankrl.ppo.arguments import arguments
from rankrl.ppo.canary import Canary
from rankrl.ppo.groups import PolicyView, RunView, value_name
from rankrl.ppo.rollout import (
    Prompter,
    Rollouts,
    Sample,
    experience,
    score,
    tokens_by_position,
    verdict_counts,
)
from rankrl.ppo.schedules import KLController, clip_share
from rankrl.ppo.services import Services
from rankrl.ppo.workers import AdapterSpec
from rankrl.recipe.allocation import Importance, allocation_table
from rankrl.recipe.plan import Run
from rankrl.recipe.rank_table import ModuleRank, uniform
from rankrl.reward.grade import shaped

CANARY_SAMPLES = 64
"""Samples of a rollout on which the previous adapter is evaluated as well."""


class Diverged(RuntimeError):
    """A loss, gradient or log-probability is no longer finite."""


class ExperienceMaker(RemoteExperienceMaker):
    """Upstream's, from graded samples, keeping the per-token log-probabilities that the canary and the KL per step need."""

    run: Run
    seen: dict[str, np.ndarray]

    def split_rollout_samples(self, rollout_samples: list[Sample]) -> list[Experience]:
        """Micro-batches of samples of like length, so that little is padded; each worker gets short and long ones.

        Where samples share the computation of their prompt, they stay beside each other.
        """
        order = list(range(len(rollout_samples)))
        if not self.run.scale.model.share_prefixes:
            order.sort(key=lambda i: rollout_samples[i].tokens)
        size, workers = self.args.rollout.micro_batch_size, len(self.actor_model_group.group.workers)
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return [self._micro_batch(rollout_samples, part) for w in range(workers) for part in parts[w::workers]]

    def _micro_batch(self, rollout_samples: list[Sample], index: list[int]) -> Experience:
        samples, lengths = [rollout_samples[i] for i in index], self.run.scale.lengths
        weights = self.run.recipe.reward
        rewards = [shaped(s.verdict, len(s.response_ids), lengths.response_tokens, weights) for s in samples]
        return experience(samples, index, rewards, self.tokenizer.pad_token_id, self.args.data.max_len)

    @torch.no_grad()
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        workers = len(self.actor_model_group.group.workers)
        few = workers * max(1, CANARY_SAMPLES // (workers * len(samples_list[0].sequences)))  # all workers do the same
        previous_refs = self.actor_model_group.async_run_method_batch(
            "forward_previous",
            sequences=[s.sequences for s in samples_list[:few]],
            action_mask=[s.action_mask for s in samples_list[:few]],
            attention_mask=[s.attention_mask for s in samples_list[:few]],
        )
        experiences = super().make_experience(samples_list)
        previous = self._flatten_results(previous_refs, 1)
        masks = [e.action_mask.bool() for e in experiences[:few]]
        trainer = tokens_by_position(experiences, "action_log_probs")
        self.seen = {
            "engine": tokens_by_position(experiences, "rollout_log_probs").numpy(),
            "trainer": trainer.numpy(),
            "base": (trainer - tokens_by_position(experiences, "kl")).numpy(),  # upstream's k1 is their difference
            "previous": torch.cat([p[mask] for p, mask in zip(previous, masks, strict=True)]).float().numpy(),
        }
        return experiences


class RunTrainer(BasePPOTrainer):
    """Upstream's trainer for one attached run."""

    def __init__(
        self, run: Run, services: Services, prompter: Prompter, train_items: list[Item], eval_items: list[Item]
    ):
        self.run, self.services, self.train_items, self.eval_items = run, services, train_items, eval_items
        args, tokenizer = arguments(run, services.model_path), prompter.tokenizer
        strategy = SimpleNamespace(args=args)
        policy = PolicyView(services.policy, run.run_id, run.scale.model.dtype)
        critic = RunView(services.critic, value_name(run.run_id))
        reference = RunView(services.policy, run.run_id, {"forward": "forward_reference"})
        super().__init__(strategy, policy, critic, None, reference, services.engines, tokenizer)  # type: ignore[arg-type]
        self.kl_ctl = KLController(run["kl"], run.recipe.kl_schedule, run.recipe.steps)
        groups = (policy, critic, None, reference)
        self.experience_maker = ExperienceMaker(*groups, self.kl_ctl, strategy, tokenizer)  # type: ignore[arg-type]
        self.experience_maker.run = run
        self.rollouts = Rollouts(strategy, prompter, services.engines, run.scale, services.grader)
        self.canary, self.tokens_total, self.sync_bytes = Canary(), 0, 0
        self.adapter_id = next(services.adapter_ids)

    def allocate(self, importance: Importance | None = None) -> list[ModuleRank]:
        """The ranks of the policy's modules, as the recipe spends its budget on the modules of the real model."""
        run = self.run
        shapes = self.services.policy_shapes
        return allocation_table(run.recipe, run.scale.reference, run.rank, shapes, run.seed, importance)

    def attach(self, table: list[ModuleRank] | None = None, start: Start | None = None) -> int:
        """Brings the run to the services; `table` is its policy adapter, allocated by the recipe unless given, and `start` what a
        measured init starts from. Returns the parameters of that adapter.
        """
        run, recipe, args = self.run, self.run.recipe, self.args
        self.table, self.start = table or self.allocate(), start
        steps, frozen = run.optimizer_steps, recipe.critic.warmup_steps * recipe.updates_per_rollout
        policy = AdapterSpec(run.run_id, args, self.table, run.seed, run["lr_ratio"], steps - frozen, recipe.init)
        value_table = uniform(self.services.value_shapes, recipe.critic.rank, lambda rank: recipe.critic.alpha)
        critic = AdapterSpec(value_name(run.run_id), args, value_table, run.seed, 1.0, steps)
        refs = self.services.policy.async_run_method("attach", policy, start)
        ray.get(self.services.critic.async_run_method("attach", critic))
        params = ray.get(refs)[0]
        self.broadcast_to_vllm()
        return params

    def detach(self) -> None:
        self.services.detach(self.run.run_id, self.adapter_id)

    def broadcast_to_vllm(self) -> None:
        """Sends the adapter, and nothing else, from worker 0 through Ray to every engine."""
        payload = self.actor_model_group.payload()
        self.sync_bytes = ray.get(
            [engine.load_adapter.remote(self.adapter_id, payload) for engine in self.vllm_engines]
        )[0]

    def update_sizes(self) -> dict[str, dict[str, float]]:
        """Module -> norm and effective rank of delta W."""
        return ray.get(self.actor_model_group.async_run_method("update_sizes")[0])

    def evaluate(self, samples: int) -> list[Sample]:  # type: ignore[override]
        return self.rollouts.evaluate(self.adapter_id, self.eval_items, samples)

    def step(self, step: int) -> dict[str, Any]:
        """PPO step `step` (from 0): rollout, experience, update, sync. Returns the line of metrics.jsonl.

        Raises SyncError if the engine does not act with the trained adapter, Diverged on a number that is not finite.
        """
        run, start_s = self.run, time.perf_counter()
        self.kl_ctl.step = step
        low, high = self._set_clip(step)
        items = [self.train_items[i] for i in step_indices(run.seed, step, run.batch_size, len(self.train_items))]
        samples = self.rollouts.rollout(self.adapter_id, run.seed, step, items, run.recipe.samples_per_prompt)
        self.tokens_total += sum(sample.tokens for sample in samples)
        rollout_s, kl_coef = time.perf_counter() - start_s, self.kl_ctl.value
        status, _ = self.train_step(samples, step)
        seen = self.experience_maker.seen
        return {
            "step": step + 1,
            "tokens_total": self.tokens_total,
            "reward_mean": status["rollout/reward_mean"],
            "accuracy": score(samples),
            **verdict_counts(samples),
            "kl_ref": float((seen["trainer"] - seen["base"]).mean()),
            "kl_step": k3(seen["trainer"][: len(seen["previous"])], seen["previous"]),
            "kl_coef": kl_coef,
            "policy_loss": float(status.get("policy_loss", 0.0)),
            "value_loss": float(status.get("critic_loss", 0.0)),
            "clip_low": low,
            "clip_high": high,
            "clip_frac": float(status.get("ppo_clip_ratio", 0.0)),
            "entropy": float(status.get("entropy_loss", 0.0)),
            "lr": status.get("actor_lr", 0.0),
            "grad_norm": status.get("actor_grad_norm", 0.0),
            "response_tokens_mean": status["rollout/response_length_mean"],
            "truncated_frac": status["rollout/truncated_rate"],
            "sync_bytes": self.sync_bytes,
            "sync_gap_nats": self.gap,
            "rollout_s": rollout_s,
            "experience_s": status["timing/make_experience"],
            "update_s": status["timing/ppo_train"],
            "sync_s": status["timing/broadcast"],
            "step_s": time.perf_counter() - start_s,
        }

    def ppo_train(self, global_steps: int) -> dict[str, Any]:
        """Upstream's update, after the canary has compared engine and trainer, and with a look for numbers that are not finite."""
        seen = self.experience_maker.seen
        if not all(np.isfinite(values).all() for values in seen.values()):
            raise Diverged(f"step {global_steps + 1}: a log-probability is not finite")
        self.gap = self.canary.check(seen["engine"], seen["trainer"], seen["base"], seen["previous"])
        status = super().ppo_train(global_steps)
        if "policy_loss" not in status:
            self.actor_model_group.async_run_method("forget_rollout")
        for name in ("policy_loss", "critic_loss", "actor_grad_norm", "critic_grad_norm"):
            if not math.isfinite(status.get(name, 0.0)):
                raise Diverged(f"step {global_steps + 1}: {name} is {status[name]}")
        return status

    def _set_clip(self, step: int) -> tuple[float, float]:
        run = self.run
        share = clip_share(run.recipe.clip_final, step, run.recipe.steps)
        low, high = run["clip_low"] * share, run["clip_high"] * share
        self.actor_model_group.async_run_method("set_clip", low=low, high=high)
        return low, high

    def _parts(self) -> list[tuple[Any, str]]:
        """The groups that hold this run, with its name there."""
        return [(self.services.policy, self.run.run_id), (self.services.critic, value_name(self.run.run_id))]

    def state(self, step: int) -> dict[str, Any]:
        """Everything from which the run continues after `step` PPO steps."""
        refs = [group.async_run_method("state", name) for group, name in self._parts()]
        policy, critic = map(ray.get, refs)
        return {
            "step": step,
            "tokens_total": self.tokens_total,
            "kl_adapted": self.kl_ctl.adapted,
            "canary": self.canary.state(),
            "table": [asdict(row) for row in self.table],
            "policy": policy,
            "critic": critic,
        }

    def restore(self, state: dict[str, Any]) -> None:
        for (group, name), states in zip(self._parts(), (state["policy"], state["critic"]), strict=True):
            if len(group.workers) != len(states):
                raise ValueError(
                    f"checkpoint: got the state of {len(states)} workers, but {len(group.workers)} are running"
                )
            ray.get(group.each("restore", [(name, worker_state) for worker_state in states]))
        self.tokens_total, self.kl_ctl.adapted = state["tokens_total"], state["kl_adapted"]
        self.canary = Canary.from_state(state["canary"])
        self.broadcast_to_vllm()


def k3(new: np.ndarray, old: np.ndarray) -> float:
    """KL(new || old) in nats a token, from log-probabilities [N] of tokens drawn from `new` (Schulman's k3, never negative)."""
    ratio = old - new
    return float((np.exp(ratio) - 1 - ratio).mean())
