"""From graded samples to experiences: OpenRLHF's experience maker with our own micro-batches."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from rankrl.data.items import request_seed
from rankrl.ppo.advantages import by_prompt, drop_uniform, shrinkage_baseline, uniform_groups
from rankrl.ppo.rollout import Sample, experience, tokens_by_position
from rankrl.recipe.plan import Run
from rankrl.reward.grade import shaped

CANARY_SAMPLES = 64
"""Samples of a rollout for which the previous adapter's log-probabilities are computed too."""


class Logprobs(NamedTuple):
    """Log-probabilities [N] of a rollout's response tokens, in nats, by several policies."""

    engine: np.ndarray
    """From the engine that sampled the tokens."""
    trainer: np.ndarray
    """From the trainer, with the run's adapter."""
    base: np.ndarray
    """From the trainer, with the adapter off."""
    previous: np.ndarray
    """From the trainer, with the adapter before its last update; for the first tokens only."""

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return all(np.isfinite(values).all() for values in self)

    def kl_ref(self) -> float:
        """The k1 estimate of the KL to the base, in nats per token.

        It is the mean log-ratio of trainer and base.
        """
        return float((self.trainer - self.base).mean())

    def distance(self) -> float:
        """The root mean square of the log-ratio of trainer and base, in nats per token."""
        return float(np.sqrt(((self.trainer - self.base) ** 2).mean()))

    def ratio_mean(self) -> float:
        """The mean ratio p_trainer / p_engine of the sampled tokens: 1 up to numerics."""
        return float(np.exp(self.trainer.astype(np.float64) - self.engine).mean())

    def kl_step(self) -> float:
        """The k3 estimate of the KL of the last update, in nats per token."""
        return k3(self.trainer[: len(self.previous)], self.previous)


class ExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's forward passes, rewards with KL penalty, advantages and returns for one run."""

    def __init__(self, run: Run, policy: Any, critic: Any, reference: Any, kl_ctl: Any, strategy: Any, tokenizer: Any):
        super().__init__(policy, critic, None, reference, kl_ctl, strategy, tokenizer)
        self.run, self.workers = run, len(policy.group.workers)
        if run.recipe.advantage.method == "shrinkage":  # upstream subtracts nothing for a name that it does not know
            self.strategy = SimpleNamespace(args=copy.deepcopy(self.args))
            self.strategy.args.algo.advantage.estimator = "shrinkage"

    @torch.no_grad()
    def make(self, step: int, samples: list[Sample]) -> tuple[list[Experience], Logprobs]:
        """Experiences of the rollout of a step, and the log-probabilities that the canary compares.

        This is upstream's `make_experience_batch`, which drops the log-probabilities.
        """
        batches = self.split_rollout_samples(samples, request_seed("micro-batches", self.run.seed, step))
        previous_refs = self._ask_previous(batches)
        experiences = self.make_experience(batches)
        logprobs = self._logprobs(experiences, self._flatten_results(previous_refs, 1))
        return self.compute_advantages_and_returns(experiences), logprobs

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Upstream's, with what it lacks: the shrinkage baseline, and uniform groups left out."""
        section, samples = self.run.recipe.advantage, self.run.recipe.samples_per_prompt
        self.gae_advantages: list[torch.Tensor] = []  # [B, A] of each micro-batch
        rewards_PK = by_prompt(experiences, samples)
        rewards = [batch.rewards for batch in experiences]
        if section.method == "shrinkage":
            less_N = (rewards_PK - shrinkage_baseline(rewards_PK)).flatten()
            for batch in experiences:
                batch.rewards = less_N[batch.index]
        super().compute_advantages_and_returns(experiences)
        for batch, given in zip(experiences, rewards, strict=True):
            batch.rewards = given
        if section.drop_uniform_groups:
            drop_uniform(experiences, uniform_groups(rewards_PK), samples)
        return experiences

    def get_advantages_and_returns(self, values: Any, rewards: Any, action_mask: Any, *discounts: float) -> Any:
        """Upstream's GAE of a micro-batch. The advantages are kept: upstream whitens them later."""
        advantages_BA, returns_BA = super().get_advantages_and_returns(values, rewards, action_mask, *discounts)
        self.gae_advantages.append(advantages_BA)
        return advantages_BA, returns_BA

    def advantage_sd(self, experiences: list[Experience]) -> float:
        """Standard deviation of the advantage over response tokens, before it is normalised.

        Without a critic, the advantages are then the returns.
        """
        raw = self.gae_advantages or [batch.returns for batch in experiences]
        tokens = [values[batch.action_mask.bool()] for values, batch in zip(raw, experiences, strict=True)]
        return torch.cat(tokens).double().std(correction=0).item()

    def uniform_group_frac(self, experiences: list[Experience]) -> float:
        """Share of the prompts whose responses all have one reward, from 0 to 1."""
        return uniform_groups(by_prompt(experiences, self.run.recipe.samples_per_prompt)).float().mean().item()

    def split_rollout_samples(self, rollout_samples: list[Sample], seed: int = 0) -> list[Experience]:
        """Micro-batches of samples by lot, which the update uses as they are.

        Sorted by length, they would be padded less, but then an optimizer step or the first few
        micro-batches would have samples of one length only.
        """
        order = np.random.default_rng(seed).permutation(len(rollout_samples)).tolist()
        size = self.args.rollout.micro_batch_size
        return [self._micro_batch(rollout_samples, order[i : i + size]) for i in range(0, len(order), size)]

    def _micro_batch(self, rollout_samples: list[Sample], index: list[int]) -> Experience:
        samples, lengths = [rollout_samples[i] for i in index], self.run.scale.lengths
        weights = self.run.recipe.reward
        rewards = [shaped(s.verdict, len(s.response_ids), lengths.response_tokens, weights) for s in samples]
        return experience(samples, index, rewards, self.tokenizer.pad_token_id, self.args.data.max_len)

    def _ask_previous(self, batches: list[Experience]) -> list[Any]:
        """Ray references to the previous adapter's log-probabilities of the first micro-batches.

        Every worker gets the same number of them.
        """
        per_worker = max(1, CANARY_SAMPLES // (self.workers * len(batches[0].sequences)))
        few = batches[: self.workers * per_worker]
        return self.actor_model_group.async_run_method_batch(
            "forward_previous",
            sequences=[batch.sequences for batch in few],
            action_mask=[batch.action_mask for batch in few],
            attention_mask=[batch.attention_mask for batch in few],
        )

    def _logprobs(self, experiences: list[Experience], previous: list[torch.Tensor]) -> Logprobs:
        """The rollout's log-probabilities by policy.

        `previous` holds those of the previous adapter [B, A] for the first micro-batches. Call this
        before advantages are computed: upstream then drops `kl`, which gives the base's.
        """
        trainer = tokens_by_position(experiences, "action_log_probs")
        masks = [batch.action_mask.bool() for batch in experiences[: len(previous)]]
        return Logprobs(
            engine=tokens_by_position(experiences, "rollout_log_probs").numpy(),
            trainer=trainer.numpy(),
            base=(trainer - tokens_by_position(experiences, "kl")).numpy(),  # upstream's k1 is their difference
            previous=torch.cat([p[mask] for p, mask in zip(previous, masks, strict=True)]).float().numpy(),
        )


def k3(new: np.ndarray, old: np.ndarray) -> float:
    """Schulman's k3 estimate of KL(new || old), in nats per token; it is never negative.

    `new`, `old`: log-probabilities [N] of tokens that were drawn from `new`.
    """
    ratio = old - new
    return float((np.exp(ratio) - 1 - ratio).mean())


def mean_of(experiences: list[Experience], values: str) -> float:
    """Mean of a per-sample field [B], such as `response_length`, over all samples."""
    return torch.cat([getattr(batch, values) for batch in experiences]).float().mean().item()
