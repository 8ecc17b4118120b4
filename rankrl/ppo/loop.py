"""PPO training of one run, step by step, on services that outlive the run."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import ray
from openrlhf.trainer.ppo_utils.experience import Experience

from rankrl.adapter.start import Start
from rankrl.data.items import Item, request_seed, step_indices
from rankrl.ppo.ahead import Ahead
from rankrl.ppo.arguments import arguments
from rankrl.ppo.canary import Canary, SyncError, check_digests
from rankrl.ppo.examples import examples
from rankrl.ppo.experience import ExperienceMaker, Logprobs, anchor_of, mean_of
from rankrl.ppo.groups import PolicyView, RunView, value_names
from rankrl.ppo.instruments import READINGS
from rankrl.ppo.rollout import Prompter, Rollouts, Sample, score, verdict_counts
from rankrl.ppo.schedules import KLController, clip_share
from rankrl.ppo.services import Services
from rankrl.ppo.status import Diverged, Stopwatch, check_finite, mean_status, merged
from rankrl.ppo.trust_region import TrustRegion
from rankrl.ppo.workers import AdapterSpec
from rankrl.recipe.allocation import Importance, allocation_table
from rankrl.recipe.plan import Run
from rankrl.recipe.rank_table import ModuleRank, uniform

BLOWN_UP_NATS = 3.0
"""Root mean square of log p_policy - log p_base a token from which a policy counts as blown up.
Measured at nano: at most 0.6 in runs that learn, 5.7 to 9.9 in ones that collapsed."""


class RunTrainer:
    """One run attached to services.

    Its adapters and optimizers live in the services; its schedules and its canary live here.
    """

    def __init__(
        self, run: Run, services: Services, prompter: Prompter, train_items: list[Item], eval_items: list[Item]
    ):
        self.run, self.services, self.train_items, self.eval_items = run, services, train_items, eval_items
        self.args = arguments(run, services.model_path)
        self.policy = PolicyView(services.policy, run.run_id, run.scale.model.dtype)
        self.critics = [RunView(services.critic, name) for name in value_names(run.run_id, run.critics)]
        self.reference = RunView(services.policy, run.run_id, {"forward": f"forward_{anchor_of(run)}"})
        self.kl_ctl = KLController(run["kl"], run.recipe.kl_schedule, run.recipe.steps)
        self.trust_region = TrustRegion.of(run) if run.recipe.trust_region.on else None
        groups, strategy = (self.policy, self.critics, self.reference), SimpleNamespace(args=self.args)
        self.experience_maker = ExperienceMaker(run, *groups, self.kl_ctl, strategy, prompter.tokenizer)
        self.rollouts = Rollouts(prompter, services.engines, run.scale, services.grader)
        self.canary, self.tokens_total = Canary(run.scale.gap_limit_nats), 0
        self.examples: list[dict[str, Any]] = []  # lines of rollouts.jsonl, of the last step
        self.adapter_id = next(services.adapter_ids)
        self.ahead = Ahead(self.rollout, run.recipe.steps) if run.scale.engine.one_step_off else None

    def step(self, step: int) -> dict[str, Any]:
        """Makes PPO step `step` (from 0) and returns its line of metrics.jsonl.

        Raises SyncError if the engine does not act with the trained adapter, and Diverged if a
        number is not finite or the policy has blown up.
        """
        watch = Stopwatch()
        kl_coef, (clip_low, clip_high) = self.set_kl(step), self.set_clip(step)
        samples, stale = self.samples(step)
        rollout_s = watch.lap()
        self.services.sleep()
        experiences, logprobs = self.experience_maker.make(step, samples)
        experience_s = watch.lap()
        if not logprobs.finite:
            raise Diverged(f"step {step + 1}: a log-probability is not finite", max(step - 1 - stale, 0))
        gap_nats = self.check_engine(step, logprobs.of_previous() if stale else logprobs)
        self.examples = examples(step + 1, samples, experiences)
        self.append(experiences)
        of_trust_region = self.set_rate(step, logprobs.kl_step(stale))
        status = self.update(step, kl_coef)
        check_finite(step, status)
        if self.ahead:
            self.ahead.wait()
        update_s = watch.lap()
        self.services.wake()
        sync_bytes = self.sync()
        sync_s = watch.lap()
        if "kl" in status:  # absent while only the critic learns
            self.kl_ctl.update(status["kl"])
        return {
            "step": step + 1,
            "tokens_total": self.tokens_total,
            "reward_mean": mean_of(experiences, "rewards"),
            "accuracy": score(samples),
            **verdict_counts(samples),
            "kl_ref": logprobs.kl_ref(),
            "kl_step": logprobs.kl_step(stale),
            **self.experience_maker.kl_anchor,
            **of_trust_region,
            "kl_coef": kl_coef,
            "policy_loss": float(status.get("policy_loss", 0.0)),
            **self.of_critic(experiences, status),
            "clip_low": clip_low,
            "clip_high": clip_high,
            "clip_frac": float(status.get("ppo_clip_ratio", 0.0)),
            "engine_ratio_mean": logprobs.ratio_mean(),
            "corrected_frac": float(status.get("is_filter_ratio", 0.0)),
            "entropy": float(status.get("entropy_loss", 0.0)),
            "lr": status.get("actor_lr", 0.0),
            "grad_norm": status.get("actor_grad_norm", 0.0),
            "kl_stopped": status.get("kl_stopped", 0),
            "norm_skipped": status.get("norm_skipped", 0),
            "response_tokens_mean": mean_of(experiences, "response_length"),
            "truncated_frac": mean_of(experiences, "truncated"),
            "uniform_group_frac": self.experience_maker.uniform_group_frac(experiences),
            "advantage_sd": self.experience_maker.advantage_sd(experiences),
            **{name: status[name] for name in READINGS if name in status},
            "sync_bytes": sync_bytes,
            "sync_gap_nats": gap_nats,
            "rollout_s": rollout_s,
            "experience_s": experience_s,
            "update_s": update_s,
            "sync_s": sync_s,
            "step_s": watch.total(),
        }

    def set_kl(self, step: int) -> float:
        """Sets the KL coefficient of this step and returns it.

        The coefficient acts on the rewards, in the experience maker, or on the policy's loss.
        """
        self.kl_ctl.step = step
        return self.kl_ctl.value

    def set_clip(self, step: int) -> tuple[float, float]:
        """Sets the clip range of this step in the policy's loss and returns it as (low, high)."""
        run = self.run
        share = clip_share(run.recipe.clip_final, step, run.recipe.steps)
        low, high = run["clip_low"] * share, run["clip_high"] * share
        self.policy.async_run_method("set_clip", low=low, high=high)
        return low, high

    def set_rate(self, step: int, kl_step: float) -> dict[str, float]:
        """Sets what this step's rate is multiplied by, with a trust region.

        Returns what metrics.jsonl says of it: the target of `kl_step`, and the factor.
        """
        region, done = self.trust_region, max(step - self.run.critic_warmup_steps, 0)
        if region is None:
            return {}
        region.follow(done, kl_step)
        self.policy.async_run_method("set_rate", factor=region.factor)
        return {"kl_target": region.target(done), "lr_factor": region.factor}

    def samples(self, step: int) -> tuple[list[Sample], bool]:
        """Graded samples of this step's prompts, and whether they are of the previous adapter.

        If the scale says so, the engines then go on with the next step's.
        """
        ready = self.ahead.take(step) if self.ahead else None
        samples = self.rollout(step) if ready is None else ready
        self.tokens_total += sum(sample.tokens for sample in samples)
        if self.ahead:
            self.ahead.begin(step + 1)
        return samples, ready is not None

    def rollout(self, step: int) -> list[Sample]:
        """Graded samples of a step's prompts, in prompt order, from the adapter of the engines."""
        run = self.run
        items = [self.train_items[i] for i in step_indices(run.seed, step, run.prompts, len(self.train_items))]
        return self.rollouts.rollout(self.adapter_id, run.seed, step, items, run.recipe.samples_per_prompt)

    def check_engine(self, step: int, logprobs: Logprobs) -> float:
        """Asks the canary about a rollout. Returns the mean gap of engine and trainer in nats.

        An alarm means a wrong engine (SyncError) only where the policy is sound. One that has blown
        up magnifies the engine's rounding as well: then it is the policy that Diverged.
        """
        try:
            return self.canary.check(*logprobs)
        except SyncError as error:
            if logprobs.distance() < BLOWN_UP_NATS:
                raise
            raise Diverged(f"step {step + 1}: the policy has blown up: {error}", max(step - 1, 0)) from error

    def append(self, experiences: list[Experience]) -> None:
        """Adds the experiences to the policy's replay buffer, and its share to each critic's."""
        self.policy.async_run_method_batch("append", experience=experiences)
        for critic, share in zip(self.critics, self.experience_maker.shares_of_critics(experiences), strict=True):
            critic.async_run_method_batch("append", experience=share)

    def update(self, step: int, kl_coef: float) -> dict[str, Any]:
        """Makes the optimizer steps on the rollout, critic and policy at the same time.

        `kl_coef` acts on a KL in the policy's loss; one in the rewards has acted already.

        Returns upstream's status, each value a mean over the steps and over the critics. During the
        critic's warm-up the policy is not trained and its rollout is dropped.
        """
        critics = [critic.async_run_method("fit") for critic in self.critics]
        refs = []
        if step >= self.run.critic_warmup_steps:
            kept = step + 1 if step + 1 in self.run.recipe.average.steps(self.run.recipe.steps) else 0
            refs = self.policy.async_run_method("fit", kl_ctl=kl_coef, snapshot=kept)
        else:
            self.policy.async_run_method("forget_rollout")
        of_critics = mean_status([merged(ray.get(refs)) for refs in critics])
        return of_critics | merged(ray.get(refs))

    def of_critic(self, experiences: list[Experience], status: dict[str, Any]) -> dict[str, float | None]:
        """What metrics.jsonl says of the critic and of its update; {} without one."""
        if not self.critics:
            return {}
        return {
            "value_loss": float(status["critic_loss"]),
            **self.experience_maker.value_metrics(experiences),
            "critic_lr": status["critic_lr"],
            "critic_grad_norm": status["critic_grad_norm"],
        }

    def sync(self) -> int:
        """Sends the adapter, and nothing else, from worker 0 through Ray to every engine.

        With trained=b, A goes with the first sync only. Returns the bytes that were sent. Raises
        SyncError if an engine holds other tensors than were sent.
        """
        return self._load(self.policy.payload())

    def load_average(self) -> None:
        """Sends the average of the adapters to every engine, in place of the last one.

        Raises SyncError as `sync` does.
        """
        self._load(self.policy.async_run_method("average_payload", dtype=self.run.scale.model.dtype)[0])

    def _load(self, payload: Any) -> int:
        loaded = ray.get([engine.load_adapter.remote(self.adapter_id, payload) for engine in self.services.engines])
        check_digests(loaded)
        return loaded[0].size_bytes

    def evaluate(self, done: int, samples: int) -> list[Sample]:
        """Graded samples of every evaluation item, `samples` of each, after `done` PPO steps.

        Raises Diverged if a log-probability is not finite.
        """
        graded = self.rollouts.evaluate(self.adapter_id, self.eval_items, samples, self.run.eval_seed)
        if not all(math.isfinite(logprob) for sample in graded for logprob in sample.logprobs):
            raise Diverged(f"step {done}: a log-probability of the evaluation is not finite", done - 1)
        return graded

    def allocate(self, importance: Importance | None = None) -> list[ModuleRank]:
        """The ranks of the policy's modules: the recipe's budget, spent on the real model.

        A measured allocation needs `importance`.
        """
        run, shapes = self.run, self.services.policy_shapes
        return allocation_table(run.recipe, run.scale.reference, run.rank, shapes, run.seed, importance)

    def attach(self, table: list[ModuleRank] | None = None, start: Start | None = None) -> int:
        """Attaches the run to the services. Returns the trained parameters of its policy adapter.

        `table` gives the adapter's ranks (default: the recipe's allocation), `start` what a
        measured init starts from.
        """
        run, recipe, args = self.run, self.run.recipe, self.args
        self.table, self.start = table or self.allocate(), start
        steps = run.optimizer_steps - run.critic_warmup_steps * run.updates
        policy = AdapterSpec(
            run.run_id,
            args,
            self.table,
            run.seed,
            run["lr_ratio"],
            steps,
            run.updates,
            recipe.init,
            recipe.trained,
            recipe.optimizer,
            recipe.lr_shape,
            recipe.lr_final,
            recipe.warmup_offset,
            recipe.brakes,
            average=recipe.average.method,
            anchor_rate=recipe.kl_anchor.rate if recipe.kl_anchor.moves else 0.0,
            constant_normaliser=recipe.advantage.normaliser == "constant",
        )
        refs = self.services.policy.async_run_method("attach", policy, start)
        self._attach_critics()
        params = ray.get(refs)[0]
        self.sync()
        return params

    def _attach_critics(self) -> None:
        """Attaches the run's value adapters and heads, if it has a critic.

        Each takes as many optimizer steps as one critic alone, on batches of its share of samples.
        """
        run, critic = self.run, self.run.recipe.critic
        table = uniform(self.services.value_shapes, critic.rank, lambda rank: critic.alpha)
        steps, offset, args = run.optimizer_steps, run.recipe.warmup_offset, copy.deepcopy(self.args)
        args.train.batch_size //= max(run.critics, 1)
        seeds = (run.seed, request_seed("second critic", run.seed))
        for view, seed in zip(self.critics, seeds, strict=False):
            spec = AdapterSpec(view.name, args, table, seed, 1.0, steps, run.updates, warmup_offset=offset)
            ray.get(self.services.critic.async_run_method("attach", spec))

    def detach(self) -> None:
        """Removes the run from the services."""
        if self.ahead:
            self.ahead.end()
        self.services.detach(self.run.run_id, self.adapter_id)

    def step_back(self) -> bool:
        """Loads the policy adapter before its last update. Returns whether its weights are finite.

        The run cannot train on from there: its optimizers and its critic have gone on.
        """
        return all(ray.get(self.policy.async_run_method("step_back")))

    def update_sizes(self) -> dict[str, dict[str, float]]:
        """Norm and effective rank of delta W, by module."""
        return ray.get(self.policy.async_run_method("update_sizes")[0])

    def peft_files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The adapter as PEFT saves it: (adapter_config, tensors)."""
        return ray.get(self.policy.async_run_method("peft_files")[0])

    def average_files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The average of the adapters as PEFT saves it: (adapter_config, tensors)."""
        return ray.get(self.policy.async_run_method("average_files")[0])

    def _parts(self) -> dict[str, tuple[Any, str]]:
        """Role -> the worker group that holds this run, and the run's name in it."""
        policy, critic = self.services.policy, self.services.critic
        values = zip(("critic", "second_critic"), self.critics, strict=False)
        return {"policy": (policy, self.run.run_id), **{role: (critic, view.name) for role, view in values}}

    def state(self, step: int) -> dict[str, Any]:
        """Everything that is needed to continue the run after `step` PPO steps."""
        refs = {role: group.async_run_method("state", name) for role, (group, name) in self._parts().items()}
        return {
            "step": step,
            "tokens_total": self.tokens_total,
            "kl_adapted": self.kl_ctl.adapted,
            "lr_factor": self.trust_region.factor if self.trust_region else 1.0,
            "canary": self.canary.state(),
            **({"history": self.experience_maker.history.state()} if self.experience_maker.history else {}),
            "table": [asdict(row) for row in self.table],
            **{role: ray.get(asked) for role, asked in refs.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues the run where `state` was saved.

        Raises ValueError if it was saved with another number of workers.
        """
        for role, (group, name) in self._parts().items():
            states = state[role]
            if len(group.workers) != len(states):
                raise ValueError(
                    f"checkpoint: got the state of {len(states)} workers, but {len(group.workers)} are running"
                )
            whole = ray.put(states[0])  # what others lack they have in common with worker 0
            ray.get(group.each("restore", [(name, whole, own) for own in states]))
        self.tokens_total, self.kl_ctl.adapted = state["tokens_total"], state["kl_adapted"]
        if self.trust_region:
            self.trust_region.factor = state["lr_factor"]
        if self.experience_maker.history:
            self.experience_maker.history.restore(state["history"])
        self.canary = Canary.from_state(state["canary"], self.run.scale.gap_limit_nats)
        if self.ahead and state["step"]:  # what the interrupted run had sampled ahead
            self._load(self.policy.async_run_method("previous_payload", dtype=self.run.scale.model.dtype)[0])
            self.ahead.begin(state["step"])
            self.ahead.wait()
        self.sync()
