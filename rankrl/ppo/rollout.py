"""Rollouts and evaluations: items -> prompts -> seeded requests to the engines -> graded samples, in prompt order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from rankrl.data.items import Item, request_seed
from rankrl.ppo.engine import Requests, Responses
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import Reward
from rankrl.reward.grade import Verdict, grade, shaped


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
        template = self.scale.data.template
        if template == "chat":
            chat = [{"role": "user", "content": item.prompt}]
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            text = template.replace("{}", item.prompt) if template else item.prompt
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        longest = self.scale.lengths.prompt_tokens
        if len(ids) > longest:
            raise ValueError(
                f"lengths.prompt_tokens: got {longest}, but item {item.item_id} has {len(ids)} prompt tokens"
            )
        return ids


class Rollouts(SamplesGenerator):
    """Upstream's generator with batched, seeded requests. `adapter_id` None samples from the base."""

    def __init__(self, strategy: Any, prompter: Prompter, engines: list[Any], scale: Scale):
        super().__init__(strategy, None, None, prompter.tokenizer, engines)
        self.prompter, self.scale = prompter, scale

    def sample(
        self, adapter_id: int | None, items: list[Item], seeds: list[list[int]], temperature: float
    ) -> list[Sample]:
        """`len(seeds[i])` graded samples of each item, in order of items and samples, whatever the order of completion."""
        flat = [
            (item, k, seed) for item, item_seeds in zip(items, seeds, strict=True) for k, seed in enumerate(item_seeds)
        ]
        share = -(-len(flat) // len(self.vllm_engines))
        chunks = [flat[i : i + share] for i in range(0, len(flat), share)]
        refs = []
        for engine, chunk in zip(self.vllm_engines, chunks, strict=False):
            prompts = [self.prompter(item) for item, _, _ in chunk]
            requests = Requests(
                prompts, [seed for _, _, seed in chunk], temperature, self.scale.lengths.response_tokens
            )
            refs.append(engine.generate_batch.remote(adapter_id, requests))
        return [
            sample
            for chunk, responses in zip(chunks, ray.get(refs), strict=True)
            for sample in self._graded(chunk, responses)
        ]

    def _graded(self, chunk: list[tuple[Item, int, int]], responses: Responses) -> list[Sample]:
        parts = responses.split()
        texts = self.tokenizer.batch_decode([ids for ids, _ in parts], skip_special_tokens=True)
        return [
            Sample(item, k, self.prompter(item), ids, logprobs, bool(cut), grade(text, item.answer))
            for (item, k, _), (ids, logprobs), cut, text in zip(chunk, parts, responses.truncated, texts, strict=True)
        ]

    def rollout(self, adapter_id: int, run_seed: int, step: int, items: list[Item], samples: int) -> list[Sample]:
        """`samples` training samples of each item; requests are seeded by (run seed, step, item, sample)."""
        seeds = [[request_seed("train", run_seed, step, item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.temperature)

    def evaluate(self, adapter_id: int | None, items: list[Item], samples: int) -> list[Sample]:
        """`samples` evaluation samples of each item; the seeds are the same for every run and step, so comparisons are paired."""
        seeds = [[request_seed("eval", item.item_id, k) for k in range(samples)] for item in items]
        return self.sample(adapter_id, items, seeds, self.scale.sampling.eval_temperature)

    def experience(self, sample: Sample, weights: Reward) -> Experience:
        """The sample as upstream's experience of one row: shaped reward for training, verdict as score."""
        prompt = len(sample.prompt_ids)
        reward = shaped(sample.verdict, len(sample.response_ids), self.scale.lengths.response_tokens, weights)
        response = {
            "prompt": sample.item.prompt,
            "label": sample.item.answer,
            "observation_tokens": sample.prompt_ids + sample.response_ids,
            "action_ranges": [(prompt, sample.tokens)],
            "rollout_log_probs": [0.0] * prompt + sample.logprobs,
            "truncated": sample.truncated,
            "reward": reward,
            "scores": float(sample.verdict.correct),
        }
        return self._process_response_into_experience(response, max_len=self.args.data.max_len)


def score(samples: list[Sample]) -> float:
    """Share of correct samples."""
    return sum(sample.verdict.correct for sample in samples) / len(samples)


def tokens_by_position(experiences: list[Experience], field: str) -> torch.Tensor:
    """[N]: the values of a per-token field [B, A] at the response tokens of all experiences, in order."""
    return torch.cat([getattr(e, field)[e.action_mask.bool()] for e in experiences]).float()
