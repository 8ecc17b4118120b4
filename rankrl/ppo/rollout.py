"""Rollouts and evaluations: items -> prompts -> seeded requests to the engines -> graded samples, in prompt order."""

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
    """One graded response."""

    item: Item
    index: int
    """Number of this sample of its item."""
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    truncated: bool
    verdict: Verdict

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class Prompter:
    """Prompts as token ids. Raises ValueError for one that is longer than the scale allows."""

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
    """Batched, seeded requests to the engines. `adapter_id` None samples from the base."""

    def __init__(self, prompter: Prompter, engines: list[Any], scale: Scale, grader: Grader):
        self.prompter, self.engines, self.scale, self.grader = prompter, engines, scale, grader

    def sample(
        self, adapter_id: int | None, items: list[Item], seeds: list[list[int]], temperature: float
    ) -> list[Sample]:
        """`len(seeds[i])` graded samples of each item, in order of items and samples, whatever the order of completion."""
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
            Sample(item, k, self.prompter(item), ids, logprobs, bool(cut), verdict)
            for (item, k, _), (ids, logprobs), cut, verdict in zip(
                chunk, parts, responses.truncated, verdicts, strict=True
            )
        ]

    def rollout(
        self, adapter_id: int | None, run_seed: int, step: int, items: list[Item], samples: int
    ) -> list[Sample]:
        """`samples` training samples of each item; requests are seeded by (run seed, step, item, sample)."""
        seeds = [[request_seed("train", run_seed, step, item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.temperature)

    def evaluate(self, adapter_id: int | None, items: list[Item], samples: int) -> list[Sample]:
        """`samples` evaluation samples of each item; the seeds are the same for every run and step, so comparisons are paired."""
        seeds = [[request_seed("eval", item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.eval_temperature)


def experience(
    samples: list[Sample], index: list[int], rewards: list[float], pad_token: int, longest: int
) -> Experience:
    """A micro-batch as upstream's experience, padded on the right; `index` are the samples' places in the rollout.

    Upstream's action axis A = T - 1 starts at the second token: entry t belongs to the token at t + 1.
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
    """Share of correct samples."""
    return sum(sample.verdict.correct for sample in samples) / len(samples)


def verdict_counts(samples: list[Sample]) -> dict[str, int]:
    """Samples by outcome: verdict_correct, verdict_wrong, verdict_unparsable, verdict_timeout."""
    return {f"verdict_{name}": sum(s.verdict.outcome == name for s in samples) for name in OUTCOMES}


def tokens_by_position(experiences: list[Experience], field: str) -> torch.Tensor:
    """[N]: the values of a per-token field [B, A] at the response tokens of all experiences, in order."""
    return torch.cat([getattr(e, field)[e.action_mask.bool()] for e in experiences]).float()
