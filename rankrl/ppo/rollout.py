"""Rollouts and evaluations: from items to graded samples, in prompt order.

Items become prompts, prompts become seeded requests to the engines, and responses are graded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from rankrl.data.items import Item, request_seed
from rankrl.data.prompt import prompt_ids
from rankrl.ppo.serving import Requests, Responses
from rankrl.recipe.scale import Scale
from rankrl.reward.grade import OUTCOMES, Grader, Verdict


@dataclass(frozen=True)
class Sample:
    """One response to an item, with its verdict."""

    item: Item
    index: int
    """Number of this sample among the samples of its item, from 0."""
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    """The engine's log-probabilities of the response tokens, in nats."""
    truncated: bool
    """Whether the response was cut at the length limit."""
    verdict: Verdict
    response: str | None = None
    """Text of the response, without special tokens; None if the base was sampled by a rankrl that
    kept no text."""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class Prompter:
    """Gives the prompt of an item as token ids.

    Raises ValueError for a prompt that is longer than the scale allows.
    """

    def __init__(self, tokenizer: Any, scale: Scale):
        self.tokenizer, self.scale = tokenizer, scale
        self.cache: dict[str, list[int]] = {}

    def __call__(self, item: Item) -> list[int]:
        if item.prompt not in self.cache:
            self.cache[item.prompt] = self._tokenize(item)
        return self.cache[item.prompt]

    def _tokenize(self, item: Item) -> list[int]:
        ids = prompt_ids(self.tokenizer, self.scale.data, item.prompt)
        longest = self.scale.lengths.prompt_tokens
        if len(ids) > longest:
            raise ValueError(
                f"lengths.prompt_tokens: got {longest}, but item {item.item_id} has {len(ids)} prompt tokens"
            )
        return ids


class Rollouts:
    """Sampling from the engines, in seeded batches. `adapter_id` None samples from the base."""

    def __init__(self, prompter: Prompter, engines: list[Any], scale: Scale, grader: Grader):
        self.prompter, self.engines, self.scale, self.grader = prompter, engines, scale, grader

    def sample(
        self, adapter_id: int | None, items: list[Item], seeds: list[list[int]], temperature: float
    ) -> list[Sample]:
        """Graded samples, `len(seeds[i])` of item i, in order of items and then samples.

        The order does not depend on which request finishes first.
        """
        flat = [
            (item, k, seed) for item, item_seeds in zip(items, seeds, strict=True) for k, seed in enumerate(item_seeds)
        ]
        share = -(-len(flat) // len(self.engines))
        chunks = [flat[i : i + share] for i in range(0, len(flat), share)]
        refs = []
        for engine, chunk in zip(self.engines, chunks, strict=False):
            prompts = [self.prompter(item) for item, _, _ in chunk]
            requests = Requests(
                prompts, [seed for _, _, seed in chunk], temperature, self.scale.lengths.response_tokens
            )
            refs.append(engine.generate_batch.remote(adapter_id, requests))
        return [  # the samples of an engine are graded while others still generate
            sample for chunk, ref in zip(chunks, refs, strict=True) for sample in self._graded(chunk, ray.get(ref))
        ]

    def _graded(self, chunk: list[tuple[Item, int, int]], responses: Responses) -> list[Sample]:
        parts = responses.split()
        texts = self.prompter.tokenizer.batch_decode([ids for ids, _ in parts], skip_special_tokens=True)
        verdicts = self.grader.grade(texts, [item.answer for item, _, _ in chunk])
        return [
            Sample(item, k, self.prompter(item), ids, logprobs, bool(cut), verdict, text)
            for (item, k, _), (ids, logprobs), cut, verdict, text in zip(
                chunk, parts, responses.truncated, verdicts, texts, strict=True
            )
        ]

    def rollout(
        self, adapter_id: int | None, run_seed: int, step: int, items: list[Item], samples: int
    ) -> list[Sample]:
        """Graded training samples of each item, `samples` per item.

        Requests are seeded by (run seed, step, item, sample).
        """
        seeds = [[request_seed("train", run_seed, step, item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.temperature)

    def evaluate(
        self, adapter_id: int | None, items: list[Item], samples: int, eval_seed: int | None = None
    ) -> list[Sample]:
        """Graded evaluation samples of each item, `samples` per item.

        The seeds are the same for every step, and for every run too unless `eval_seed` is given, so
        that comparisons are paired.
        """
        own = () if eval_seed is None else (eval_seed,)
        seeds = [[request_seed("eval", *own, item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.eval_temperature)


def experience(
    samples: list[Sample], index: list[int], rewards: list[float], pad_token: int, longest: int
) -> Experience:
    """A micro-batch as upstream's experience, padded on the right.

    `index` is the samples' places in the rollout; `longest` is the length in tokens from which
    `response_clip_ratio` counts a sample. Upstream's action axis A = T - 1 starts at the second
    token: entry t belongs to the token at t + 1.
    """
    lengths_B = torch.tensor([sample.tokens for sample in samples])
    prompts_B = torch.tensor([len(sample.prompt_ids) for sample in samples])
    positions_T = torch.arange(int(lengths_B.max()))
    attention_mask_BT = (positions_T < lengths_B[:, None]).long()
    action_mask_BT = attention_mask_BT * (positions_T >= prompts_B[:, None])
    sequences_BT = torch.full_like(attention_mask_BT, pad_token)
    sequences_BT[attention_mask_BT.bool()] = torch.tensor(
        [token for sample in samples for token in (*sample.prompt_ids, *sample.response_ids)]
    )
    logprobs_BT = torch.zeros(attention_mask_BT.shape)
    logprobs_BT[action_mask_BT.bool()] = torch.tensor([p for sample in samples for p in sample.logprobs])
    reward_B = torch.tensor(rewards)
    score_B = torch.tensor([float(sample.verdict.correct) for sample in samples])
    return Experience(
        sequences=sequences_BT,
        attention_mask=attention_mask_BT,
        action_mask=action_mask_BT[:, 1:],
        rollout_log_probs=logprobs_BT[:, 1:],
        rewards=reward_B,
        scores=score_B,
        response_length=lengths_B - prompts_B,
        truncated=torch.tensor([sample.truncated for sample in samples]),
        total_length=lengths_B.float(),
        index=index,
        info={"response_clip_ratio": lengths_B >= longest, "reward": reward_B, "score": score_B},
    )


def score(samples: list[Sample]) -> float:
    """Share of correct samples, from 0 to 1."""
    return sum(sample.verdict.correct for sample in samples) / len(samples)


def verdict_counts(samples: list[Sample]) -> dict[str, int]:
    """Number of samples by outcome.

    Keys: verdict_correct, verdict_wrong, verdict_unparsable, verdict_timeout.
    """
    return {f"verdict_{name}": sum(s.verdict.outcome == name for s in samples) for name in OUTCOMES}


def tokens_by_position(experiences: list[Experience], field: str) -> torch.Tensor:
    """Values [N] of a per-token field [B, A] at the response tokens, in order, in fp32."""
    return torch.cat([getattr(e, field)[e.action_mask.bool()] for e in experiences]).float()
