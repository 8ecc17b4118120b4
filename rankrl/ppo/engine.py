"""The rollout engine: OpenRLHF's vLLM actor, serving the base and the adapters of runs, a batch of requests per call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.utils import random_uuid

from rankrl.ppo.serving import Payload
from rankrl.ppo.upstream import raw

LIVENESS_S = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Requests:
    """One sample per entry of `prompts` (token ids) and `seeds`."""

    prompts: list[list[int]]
    seeds: list[int]
    temperature: float
    response_tokens: int


@dataclass(frozen=True)
class Responses:
    """In request order: token ids and their log-probabilities, flat, with lengths; whether a response was cut."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    def split(self) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probabilities) of each response."""
        ends = np.cumsum(self.lengths)[:-1]
        return [
            (t.tolist(), p.tolist())
            for t, p in zip(np.split(self.token_ids, ends), np.split(self.logprobs, ends), strict=True)
        ]


class RolloutEngine(raw(RolloutRayActor)):  # type: ignore[misc]
    async def __init__(self, **kwargs: Any):  # type: ignore[misc]
        await super().__init__(**kwargs)
        await self.llm.collective_rpc("die_with", args=(os.getpid(),))
        self.served: dict[int, LoRARequest] = {}

    async def load_adapter(self, adapter_id: int, payload: Payload) -> int:
        """Serves `payload` as adapter `adapter_id` from now on. Returns the bytes received."""
        args = (adapter_id, payload.names, payload.shapes, payload.dtype, payload.data)
        received = await self._while_alive(self.llm.collective_rpc("receive_adapter", args=args))
        await self._while_alive(self.reset_prefix_cache())  # cached keys and values are the previous adapter's
        # The path is never read: should vLLM have evicted the adapter, the request fails instead of answering from the base.
        self.served[adapter_id] = LoRARequest(f"adapter-{adapter_id}", adapter_id, "/adapters/are/sent/from/memory")
        return received[0]

    async def drop_adapter(self, adapter_id: int) -> None:
        if self.served.pop(adapter_id, None):
            await self._while_alive(self.llm.collective_rpc("drop_adapter", args=(adapter_id,)))

    async def _while_alive(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises RuntimeError when the engine process is dead: vLLM leaves open calls waiting."""
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait({task}, timeout=LIVENESS_S))[0]:
            if self.llm.errored:
                task.cancel()
                raise RuntimeError("the vLLM engine process died")
        return task.result()

    async def generate_batch(self, adapter_id: int | None, requests: Requests) -> Responses:
        """Samples one response per request from an adapter, or from the base (None).

        The scheduler is paused until all requests have arrived, so that batches, and with them bf16 rounding, are the same
        each time.
        """
        return await self._while_alive(
            self._generate(None if adapter_id is None else self.served[adapter_id], requests)
        )

    async def _generate(self, lora: LoRARequest | None, requests: Requests) -> Responses:
        await self.llm.pause_generation(mode="keep", clear_cache=False)
        try:
            queues = [
                await self.llm.add_request(
                    random_uuid(),
                    TokensPrompt(prompt_token_ids=prompt),
                    self._params(requests, seed),
                    lora_request=lora,
                )
                for prompt, seed in zip(requests.prompts, requests.seeds, strict=True)
            ]
        finally:
            await self.llm.resume_generation()
        return _collect([(await queue.get()).outputs[0] for queue in queues])

    @staticmethod
    def _params(requests: Requests, seed: int) -> SamplingParams:
        return SamplingParams(
            temperature=requests.temperature,
            max_tokens=requests.response_tokens,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )


def _collect(outputs: list[Any]) -> Responses:
    token_ids = [token for output in outputs for token in output.token_ids]
    logprobs = [
        entry[token].logprob
        for output in outputs
        for token, entry in zip(output.token_ids, output.logprobs, strict=True)
    ]
    return Responses(
        np.array(token_ids, dtype=np.int64),
        np.array(logprobs, dtype=np.float32),
        np.array([len(output.token_ids) for output in outputs]),
        np.array([output.finish_reason == "length" for output in outputs]),
    )


RemoteEngine = ray.remote(RolloutEngine)
