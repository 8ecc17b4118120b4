"""From graded samples to experiences: OpenRLHF's experience maker with our own micro-batches."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from rankrl.data.items import request_seed
from rankrl.ppo.advantages import by_prompt, drop_uniform, exactly_uniform, less_baseline, uniform_groups
from rankrl.ppo.packing import shares_of_steps, within_tokens
from rankrl.ppo.reward_history import RewardHistory
from rankrl.ppo.rollout import Sample, experience, tokens_by_position
from rankrl.ppo.values import dealt, gaps, length_lambda, mask_agreed, set_mean_values, value_metrics
from rankrl.recipe.plan import Run
from rankrl.reward.grade import shaped

CANARY_SAMPLES = 64
"""Samples of a rollout for which the previous adapter's log-probabilities are computed too."""


OWN_BASELINES = ("shrinkage", "history")
"""Methods of advantage whose baseline is subtracted here, not by upstream."""


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

    def of_previous(self) -> Logprobs:
        """The first tokens, with the previous adapter for the trainer's: who has sampled them.

        Nothing is known of the adapter before that one.
        """
        first = slice(len(self.previous))
        return Logprobs(self.engine[first], self.previous, self.base[first], self.previous[:0])

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

    def kl_step(self, stale: bool = False) -> float:
        """The k3 estimate of the KL of the last update, in nats per token.

        Of the adapter to the one before it; where that one has sampled the tokens, `stale`, the
        other way round.
        """
        new, old = self.trainer[: len(self.previous)], self.previous
        return k3(old, new) if stale else k3(new, old)


def anchor_of(run: Run) -> str:
    """Whose log-probabilities the KL penalty compares with: a worker's forward_<name>."""
    return "anchor" if run.recipe.kl_anchor.moves else "reference"


class ExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's forward passes, rewards with KL penalty, advantages and returns for one run."""

    def __init__(
        self, run: Run, policy: Any, critics: list[Any], reference: Any, kl_ctl: Any, strategy: Any, tokenizer: Any
    ):
        first, self.second_critic = (*critics, None, None)[:2]
        super().__init__(policy, first, None, reference, kl_ctl, strategy, tokenizer)
        self.run, self.workers = run, len(policy.group.workers)
        self.values: list[list[torch.Tensor]] = []
        """Values [B, A] of the last rollout's micro-batches, by critic."""
        self.returns: list[torch.Tensor] = []
        """Monte-Carlo returns [B, A] of the same, with the KL penalty."""
        self.gae_advantages: list[torch.Tensor] = []
        """Advantages [B, A] of the same before they are normalised; none without a critic."""
        section = run.recipe.advantage
        self.history = RewardHistory(section) if section.method == "history" else None
        self.kl_anchor: dict[str, float] = {}
        """The k1 estimate of the last rollout's KL to an anchor other than the base, in nats per
        token."""
        self.prompts: list[str] = []
        """Ids of the last rollout's prompts, in their order."""
        if section.method in OWN_BASELINES:  # upstream subtracts nothing for a name that it does not know
            self.strategy = SimpleNamespace(args=copy.deepcopy(self.args))
            self.strategy.args.algo.advantage.estimator = section.method

    @torch.no_grad()
    def make(self, step: int, samples: list[Sample]) -> tuple[list[Experience], Logprobs]:
        """Experiences of the rollout of a step, and the log-probabilities that the canary compares.

        This is upstream's `make_experience_batch`, which drops the log-probabilities.
        """
        self.prompts = [sample.item.item_id for sample in samples[:: self.run.recipe.samples_per_prompt]]
        batches = self.split_rollout_samples(samples, request_seed("micro-batches", self.run.seed, step))
        previous_refs, second_refs = self._ask_previous(batches), self._ask_second_critic(batches)
        base_refs = self._ask_base(batches)
        experiences = self.make_experience(batches)
        self.values = [[batch.values for batch in experiences]] if self.run.critic else []
        if second_refs:
            self.values = set_mean_values(experiences, self._flatten_results(second_refs, 1))
        logprobs = self._logprobs(experiences, *(self._flatten_results(refs, 1) for refs in (previous_refs, base_refs)))
        return self.compute_advantages_and_returns(experiences), logprobs

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Upstream's, with what it lacks.

        That is the baselines of shrinkage and history; uniform groups that stay uniform in floating
        point; and uniform groups, and tokens on which two critics agree, left out.
        """
        self.returns, self.gae_advantages = [], []
        section, samples = self.run.recipe.advantage, self.run.recipe.samples_per_prompt
        rewards_PK = by_prompt(experiences, samples)
        rewards = [batch.rewards for batch in experiences]
        if section.method in (*OWN_BASELINES, "group_norm"):
            compared_N = self._compared(rewards_PK).flatten()
            for batch in experiences:
                batch.rewards = compared_N[batch.index]
        super().compute_advantages_and_returns(experiences)
        for batch, given in zip(experiences, rewards, strict=True):
            batch.rewards = given
        if section.drop_uniform_groups:
            drop_uniform(experiences, uniform_groups(rewards_PK), samples)
        if len(self.values) == 2:
            mask_agreed(experiences, gaps(experiences, self.values), self.run.recipe.critic.masked_share)
        return experiences

    def _compared(self, rewards_PK: torch.Tensor) -> torch.Tensor:
        """The rewards [P, K] that upstream gets, for a method that needs other ones."""
        if self.history:
            return self.history.less_baseline(self.prompts, rewards_PK)
        return (
            less_baseline(rewards_PK)
            if self.run.recipe.advantage.method == "shrinkage"
            else exactly_uniform(rewards_PK)
        )

    @torch.no_grad()
    def get_advantages_and_returns(
        self, values: torch.Tensor, rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float, lambd: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Upstream's GAE of a micro-batch, with a lambda of its own for policy and critic.

        Its advantages are kept: upstream whitens them later.
        """
        self.returns.append(self.get_cumulative_returns(rewards, action_mask, gamma))
        alpha, target = self.run.recipe.gae_length_alpha, self.run.recipe.critic.lambda_ or lambd
        policy = lambd if alpha is None else length_lambda(action_mask, alpha)
        advantages, returns = super().get_advantages_and_returns(values, rewards, action_mask, gamma, policy)
        if policy is not lambd or target != lambd:
            _, returns = super().get_advantages_and_returns(values, rewards, action_mask, gamma, target)
        self.gae_advantages.append(advantages)
        return advantages, returns

    def value_metrics(self, experiences: list[Experience]) -> dict[str, float | None]:
        """What metrics.jsonl says of the critic's values of this rollout; {} without a critic."""
        return value_metrics(experiences, self.returns, self.values) if self.values else {}

    def shares_of_critics(self, experiences: list[Experience]) -> list[list[Experience]]:
        """The micro-batches that each critic learns from, with its own values as the old ones."""
        critics = len(self.values)
        return [
            [replace(batch, values=own) for batch, own in zip(experiences[k::critics], values[k::critics], strict=True)]
            for k, values in enumerate(self.values)
        ]

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
        micro-batches would have samples of one length only. By tokens they are packed, so nothing
        is padded; each step and worker has samples by lot. Those for two critics take turns.
        """
        order = np.random.default_rng(seed).permutation(len(rollout_samples)).tolist()
        critics = max(self.run.critics, 1)
        shares = dealt(order, self.run.recipe.samples_per_prompt, critics) if critics > 1 else [order]
        by_critic = self._parts(shares, rollout_samples)
        return [self._micro_batch(rollout_samples, part) for turn in zip(*by_critic, strict=True) for part in turn]

    def _parts(self, shares: list[list[int]], samples: list[Sample]) -> list[list[list[int]]]:
        """The places of each critic's samples by micro-batch: of so many samples, or tokens."""
        place, size = self.run.served.placement, self.args.rollout.micro_batch_size
        if place.micro_batch_tokens is None:
            return [[share[i : i + size] for i in range(0, len(share), size)] for share in shares]
        workers = self.workers, len(self.critic_model_group.group.workers) if self.critic_model_group else 1
        lengths = [sample.tokens for sample in samples]
        cells = [cell for share in shares for cell in shares_of_steps(share, self.run.updates, *workers)]
        found = within_tokens(cells, lengths, place.micro_batch_tokens)
        parts = [part for of_cell in found for part in of_cell]
        return [parts[i : i + len(parts) // len(shares)] for i in range(0, len(parts), len(parts) // len(shares))]

    def _micro_batch(self, rollout_samples: list[Sample], index: list[int]) -> Experience:
        samples, lengths = [rollout_samples[i] for i in index], self.run.scale.lengths
        weights = self.run.recipe.reward
        rewards = [shaped(s.verdict, len(s.response_ids), lengths.response_tokens, weights) for s in samples]
        return experience(samples, index, rewards, self.tokenizer.pad_token_id, self.args.data.max_len)

    def _ask_previous(self, batches: list[Experience]) -> list[Any]:
        """Ray references to the previous adapter's log-probabilities of the first micro-batches.

        Every worker gets the same number of them.
        """
        a_batch = sum(len(batch.sequences) for batch in batches) / len(batches)
        per_worker = max(1, int(CANARY_SAMPLES / (self.workers * a_batch)))
        few = batches[: self.workers * per_worker]
        return self.actor_model_group.async_run_method_batch(
            "forward_previous",
            sequences=[batch.sequences for batch in few],
            action_mask=[batch.action_mask for batch in few],
            attention_mask=[batch.attention_mask for batch in few],
        )

    def _ask_base(self, batches: list[Experience]) -> list[Any]:
        """Ray references to the base's log-probabilities, where the KL is to another anchor."""
        if not self.run.recipe.kl_anchor.moves:
            return []
        return self.actor_model_group.async_run_method_batch(
            "forward_reference",
            sequences=[batch.sequences for batch in batches],
            action_mask=[batch.action_mask for batch in batches],
            attention_mask=[batch.attention_mask for batch in batches],
        )

    def _ask_second_critic(self, batches: list[Experience]) -> list[Any]:
        """Ray references to the second critic's values of all micro-batches; none without it."""
        if self.second_critic is None:
            return []
        return self.second_critic.async_run_method_batch(
            "forward",
            sequences=[batch.sequences for batch in batches],
            action_mask=[batch.action_mask for batch in batches],
            attention_mask=[batch.attention_mask for batch in batches],
        )

    def _logprobs(
        self, experiences: list[Experience], previous: list[torch.Tensor], base: list[torch.Tensor]
    ) -> Logprobs:
        """The rollout's log-probabilities by policy.

        `previous` holds those of the previous adapter [B, A] for the first micro-batches, `base`
        those of the base for all, unless it is the anchor. Call this before advantages are
        computed: upstream then drops `kl`, which gives the anchor's.
        """
        trainer = tokens_by_position(experiences, "action_log_probs")
        if self.run.recipe.kl_anchor.in_loss:
            anchor = tokens_by_position(experiences, "base_action_log_probs")
        else:
            anchor = trainer - tokens_by_position(experiences, "kl")  # upstream's k1 is their difference
        if base:
            self.kl_anchor = {"kl_anchor": float((trainer - anchor).mean())}
        return Logprobs(
            engine=tokens_by_position(experiences, "rollout_log_probs").numpy(),
            trainer=trainer.numpy(),
            base=(masked(base, experiences) if base else anchor).numpy(),
            previous=masked(previous, experiences).numpy(),
        )


def masked(values: list[torch.Tensor], experiences: list[Experience]) -> torch.Tensor:
    """Values [N] at the response tokens, in fp32, of values [B, A] of the first micro-batches."""
    return torch.cat([v[e.action_mask.bool()] for v, e in zip(values, experiences, strict=False)]).float()


def k3(new: np.ndarray, old: np.ndarray) -> float:
    """Schulman's k3 estimate of KL(new || old), in nats per token; it is never negative.

    `new`, `old`: log-probabilities [N] of tokens that were drawn from `new`.
    """
    ratio = old - new
    return float((np.exp(ratio) - 1 - ratio).mean())


def mean_of(experiences: list[Experience], values: str) -> float:
    """Mean of a per-sample field [B], such as `response_length`, over all samples."""
    return torch.cat([getattr(batch, values) for batch in experiences]).float().mean().item()
