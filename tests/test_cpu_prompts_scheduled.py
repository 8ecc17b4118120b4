"""Shared prompts under vLLM's own scheduler, with a cache that knows of which tokens a slot is.

Little memory, so that requests lose their blocks; adapters that are replaced; requests that are
aborted. Whatever happens, a request must find its own tokens in its own blocks.
"""

from __future__ import annotations

import random
from importlib import import_module
from types import SimpleNamespace

import pytest

from rankrl.recipe.architecture import EMBEDDED

pytestmark = pytest.mark.slow
BLOCK_TOKENS = 4
CHOICES = {
    "blocks": (30, 40, 60, 120),
    "at_once": (3, 6, 20),
    "vocabulary": (2, 4, 50),
    "prompt": (1, 2, 4, 5, 8, 9, 13, 30),
    "samples": (1, 2, 6, 9),
    "answer": (1, 2, 5, 20, 40),
}
REQUESTS = 40


PARTS = {
    "vllm": ("SamplingParams", "config"),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.v1.core.sched.scheduler": ("Scheduler",),
    "vllm.v1.kv_cache_interface": ("KVCacheConfig",),
    "vllm.v1.outputs": ("ModelRunnerOutput",),
    "vllm.v1.request": ("Request", "RequestStatus"),
    "vllm.v1.structured_output": ("StructuredOutputManager",),
}


@pytest.fixture(scope="module")
def vllm():
    """The parts of vLLM that an engine's core consists of, and its hash of a block's tokens."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    parts = {name: getattr(import_module(module), name) for module, names in PARTS.items() for name in names}
    path, most = str(EMBEDDED["embedded:nano"]), {"dtype": "float32", "max_model_len": 96}
    model = parts["config"].ModelConfig(model=path, skip_tokenizer_init=True, **most)
    return SimpleNamespace(**parts, model=model, hasher=get_request_block_hasher(BLOCK_TOKENS, sha256))


def scheduler(vllm, blocks, at_once):
    from test_cpu_prompts import layers

    from rankrl.ppo.cpu import shared_prompts

    cache = vllm.config.CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=True)
    whole = vllm.config.VllmConfig(
        model_config=vllm.model,
        cache_config=cache,
        scheduler_config=vllm.config.SchedulerConfig(
            max_num_seqs=at_once,
            max_num_batched_tokens=128,
            max_model_len=96,
            enable_chunked_prefill=False,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        lora_config=vllm.config.LoRAConfig(max_lora_rank=8, max_loras=2, max_cpu_loras=8),
        kv_transfer_config=shared_prompts(),
    )
    cache.block_size, cache.num_gpu_blocks = BLOCK_TOKENS, blocks
    held = vllm.KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[layers()])
    return vllm.Scheduler(whole, held, vllm.StructuredOutputManager(whole), block_size=BLOCK_TOKENS, log_stats=False)


class Engine:
    """A scheduler and a cache whose slots hold what was computed: (adapter, tokens up to there)."""

    def __init__(self, vllm, seed):
        self.vllm, self.rng = vllm, random.Random(seed)
        blocks = self.draw("blocks")
        self.vocabulary, self.scheduler = self.draw("vocabulary"), scheduler(vllm, blocks, self.draw("at_once"))
        self.slots = [[None] * BLOCK_TOKENS for _ in range(blocks)]
        self.prompts = [self.tokens(self.draw("prompt")) for _ in range(3)]
        self.versions, self.live, self.added = [0, 0, 0], {}, 0
        self.copied = self.lost_blocks = 0

    def draw(self, what):
        return self.rng.choice(CHOICES[what])

    def tokens(self, n):
        return [self.rng.randrange(self.vocabulary) for _ in range(n)]

    def add(self):
        """A prompt with some samples, of the base or of an adapter, which may be a new one."""
        adapter = self.rng.randrange(3)
        self.versions[adapter] += self.rng.random() < 0.2
        name = f"adapter-{adapter}-version-{self.versions[adapter]}"
        lora = self.vllm.LoRARequest(name, adapter, "/nowhere") if adapter else None
        prompt = self.rng.choice(self.prompts) + (self.tokens(1) if self.rng.random() < 0.3 else [])
        for _ in range(self.draw("samples")):
            self.added += 1
            params = self.vllm.SamplingParams(max_tokens=self.draw("answer"), ignore_eos=True)
            request = self.vllm.Request(
                str(self.added), list(prompt), params, None, lora_request=lora, block_hasher=self.vllm.hasher
            )
            self.live[request.request_id] = request
            self.scheduler.add_request(request)

    def abort(self):
        name = self.rng.choice([*self.live])
        self.scheduler.finish_requests(name, self.vllm.RequestStatus.FINISHED_ABORTED)
        del self.live[name]

    def step(self):
        """An engine step. Returns the number of requests in it."""
        out = self.scheduler.schedule()
        self.lost_blocks += len(out.preempted_req_ids or ())
        for source, targets in out.kv_connector_metadata.targets.items():
            self.copied += len(targets)
            for target in targets:
                self.slots[target] = list(self.slots[source])
        scheduled = {name: (self.live[name], n) for name, n in out.num_scheduled_tokens.items()}
        for request, n in scheduled.values():
            end = request.num_computed_tokens
            for i in range(end - n, end):
                self.slot(request, i)[i % BLOCK_TOKENS] = self.known(request, i)
        for request, _ in scheduled.values():
            for i in range(request.num_computed_tokens):
                assert self.slot(request, i)[i % BLOCK_TOKENS] == self.known(request, i)
        ends = [request.num_computed_tokens >= request.num_tokens for request, _ in scheduled.values()]
        names = [*scheduled]
        self.scheduler.update_from_output(
            out,
            self.vllm.ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=[self.tokens(int(end)) for end in ends],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        self.live = {name: request for name, request in self.live.items() if not request.is_finished()}
        return len(names)

    def slot(self, request, i):
        (ids,) = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)
        return self.slots[ids[i // BLOCK_TOKENS]]

    def known(self, request, i):
        lora = request.lora_request
        return lora and lora.lora_name, tuple(request.all_token_ids[: i + 1])


def test_every_request_finds_its_own_tokens_in_its_blocks(vllm):
    copied = lost_blocks = 0
    for seed in range(30):
        engine, idle = Engine(vllm, seed), 0
        while engine.added < REQUESTS or engine.live:
            if engine.added < REQUESTS and (engine.rng.random() < 0.15 or not engine.live):
                engine.add()
            if engine.live and engine.rng.random() < 0.05:
                engine.abort()
            idle = 0 if engine.step() or not engine.live else idle + 1
            assert idle < 5, f"seed {seed}: requests wait for each other"
        assert engine.scheduler.connector.leaders == engine.scheduler.connector.leader_blocks == {}
        copied, lost_blocks = copied + engine.copied, lost_blocks + engine.lost_blocks
    assert copied > 300 and lost_blocks > 50, "the cases that matter occur"
