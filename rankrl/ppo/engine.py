"""The rollout engine: OpenRLHF's vLLM actor, in one process.

It serves the base and the adapters of many runs in one batch.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray
import torch
import vllm
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from packaging import version
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from rankrl.ppo.imports import uncollected
from rankrl.ppo.serving import Loaded, Payload, Requests, Responses
from rankrl.ppo.upstream import raw
from rankrl.recipe.require import require

T = TypeVar("T")


def check_for_cpu(arguments: dict[str, Any]) -> None:
    """Raises ValueError for a switch of the scale that needs a GPU."""
    asked = {"sleep": arguments["enable_sleep_mode"], "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT") == "1"}
    for name, on in asked.items():
        require(not on, f"engine.{name}", True, "false", "this machine has no GPU")


@dataclass
class Batch:
    """The requests of one `generate_batch` call, until the last of them has finished."""

    outputs: list[Any]
    """vLLM's output of each request; None until the request has finished."""
    open: int
    """Number of requests that have not finished."""
    done: Future = field(default_factory=Future)


class RolloutEngine(raw(RolloutRayActor)):  # type: ignore[misc]
    """Upstream's actor with vLLM's engine core in the same process.

    There is no pipe and no serialisation between the two. One thread owns the engine. Between two
    engine steps it takes in what has arrived: batches of requests, and adapters. So a batch always
    enters as a whole, whatever the timing, and the requests of all runs are decoded together.
    """

    def __init__(self, bundle_indices: list[int] | None, num_gpus: int, **arguments: Any):
        with uncollected():  # vLLM is imported here, in this process alone
            if not torch.cuda.is_available():
                check_for_cpu(arguments)
                from rankrl.ppo import cpu

                cpu.group_adapters()
                arguments["kv_transfer_config"] = cpu.shared_prompts()
            self._configure_device_env(arguments["distributed_executor_backend"], bundle_indices, num_gpus)
            # this is what puts vLLM's engine core into this process
            self._configure_vllm_env(version, vllm, full_determinism=True)
            core = vllm.LLMEngine
        self.llm = core.from_engine_args(vllm.EngineArgs(**arguments))
        self.served: dict[int, LoRARequest] = {}
        self.versions, self.requests = 0, 0
        self.arrivals: queue.SimpleQueue[tuple[Future, Callable[[], None]]] = queue.SimpleQueue()
        self.batches: dict[str, tuple[Batch, int]] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    async def sleep(self) -> None:
        """Moves the weights to the host and drops the KV cache, until `wake_up`."""
        await self._between_steps(lambda: self.llm.sleep(level=1))

    async def wake_up(self) -> None:
        await self._between_steps(self.llm.wake_up)

    async def ready(self) -> int:
        """The engine's process id. Returns once the engine can serve."""
        return os.getpid()

    async def load_adapter(self, adapter_id: int, payload: Payload) -> Loaded:
        """Serves `payload` as adapter `adapter_id` from now on."""
        args = (adapter_id, payload.names, payload.shapes, payload.dtype, payload.data, payload.a_stays)
        held = await self._between_steps(lambda: self.llm.collective_rpc("receive_adapter", args=args))
        # vLLM's prefix cache is keyed by the adapter's name: with a new name, no entry of the
        # previous adapter is used. There is nothing at the path: if vLLM has evicted the adapter,
        # the request fails instead of being answered by the base.
        self.versions += 1
        name = f"adapter-{adapter_id}-version-{self.versions}"
        self.served[adapter_id] = LoRARequest(name, adapter_id, "/adapters/are/sent/from/memory")
        return Loaded(len(payload.data), payload.digest, held)

    async def drop_adapter(self, adapter_id: int) -> None:
        if self.served.pop(adapter_id, None):
            await self._between_steps(lambda: self.llm.collective_rpc("drop_adapter", args=(adapter_id,)))

    async def generate_batch(self, adapter_id: int | None, requests: Requests) -> Responses:
        """One sampled response per request.

        They come from an adapter, or from the base if `adapter_id` is None.
        """
        lora = None if adapter_id is None else self.served[adapter_id]
        batch = Batch([None] * len(requests.prompts), len(requests.prompts))
        self.arrivals.put((batch.done, lambda: self._add(batch, lora, requests)))
        return _collect(await asyncio.wrap_future(batch.done))

    def _add(self, batch: Batch, lora: LoRARequest | None, requests: Requests) -> None:
        params = _params(requests)
        for i, (prompt, seed) in enumerate(zip(requests.prompts, requests.seeds, strict=True)):
            self.requests += 1
            name = str(self.requests)
            seeded = copy.copy(params)
            seeded.seed = seed
            self.llm.add_request(name, TokensPrompt(prompt_token_ids=prompt), seeded, lora_request=lora)
            self.batches[name] = (batch, i)

    async def _between_steps(self, work: Callable[[], T]) -> T:
        """Runs `work` in the engine's thread, between two engine steps, and returns its result."""
        done: Future[T] = Future()
        self.arrivals.put((done, lambda: done.set_result(work())))
        return await asyncio.wrap_future(done)

    def _serve(self) -> None:
        """The loop of the engine's thread.

        After an error nothing can be served, so the process ends: then every caller gets an error.
        """
        try:
            while True:
                self._turn()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _turn(self) -> None:
        """Takes in everything that has arrived, then makes one engine step."""
        for done, work in self._arrived():
            try:
                work()
            except Exception as error:
                done.set_exception(error)
        if self.llm.has_unfinished_requests():
            outputs = self.llm.step()
            if not all(math.isfinite(output.outputs[0].cumulative_logprob) for output in outputs):
                self.llm.collective_rpc("clean_cache")
            for output in outputs:
                self._deliver(output)

    def _arrived(self) -> Iterator[tuple[Future, Callable[[], None]]]:
        """Everything that has arrived so far. Waits for the first arrival if the engine is idle."""
        if not self.llm.has_unfinished_requests():
            yield self.arrivals.get()
        while not self.arrivals.empty():
            yield self.arrivals.get()

    def _deliver(self, output: Any) -> None:
        batch, i = self.batches.pop(output.request_id)
        batch.outputs[i] = output.outputs[0]
        batch.open -= 1
        if not batch.open and not batch.done.done():
            batch.done.set_result(batch.outputs)


def _params(requests: Requests) -> vllm.SamplingParams:
    """The sampling parameters that all requests share."""
    return vllm.SamplingParams(
        temperature=requests.temperature,
        max_tokens=requests.response_tokens,
        seed=0,  # replaced by each request's own seed
        logprobs=0,  # only that of the sampled token
        output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        detokenize=False,
        skip_clone=True,  # a shallow copy per request is enough: nothing in it is changed in place
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
