"""Prompts that an engine on a CPU computes once for all of their samples.

vLLM's prefix cache shares whole blocks, and on a CPU a block has 32 tokens or more: the samples of
a shorter prompt would all compute it. Here the first sample of a prompt does, and the others copy
its blocks one engine step later. What is copied is what they would have computed, to the bit. GPU
runs, whose blocks have 16 tokens, never load this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec

Key: TypeAlias = "tuple[str | None, tuple[int, ...]]"
"""Name of the adapter's version, or None for the base; tokens of the prompt."""


@dataclass
class Copies(KVConnectorMetadata):
    """Block of the cache -> the blocks that it is copied to before an engine step."""

    targets: dict[int, list[int]] = field(default_factory=dict)


class SharedPrompts(KVConnectorBase_V1, SupportsHMA):
    """vLLM's connector to a store of computed prompts, where the store is the engine's own cache.

    vLLM makes one for its scheduler, which chooses the copies, and one for its worker, which makes
    them. Nothing is shared where a layer looks at a window only, or is no attention: such a layer's
    blocks may be free long before the request that filled them has finished.
    """

    requires_kv_delivery = False
    """No request waits for a copy from it."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        self.block_tokens: int = vllm_config.cache_config.block_size
        self.shares = all_see_all(kv_cache_config.kv_cache_groups)
        self.leaders: dict[Key, Any] = {}
        """The request that computes a prompt, until it has finished."""
        self.leader_blocks: dict[str, list[int]] = {}
        self.copies = Copies()
        self.caches: list[torch.Tensor] = []

    # of the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens of the prompt that can be copied: all but the last, from whose output is sampled.

        None lets the request wait for a step: another one has begun to compute its prompt.
        """
        tokens = request.num_prompt_tokens - 1 - num_computed_tokens
        if not self.shares:
            return 0, False
        leader = self.leaders.setdefault(_key(request), request)
        if tokens <= 0 or leader is request:
            return 0, False
        # 0 as long as it waits, also after vLLM has taken its blocks away to make room
        computed = leader.num_computed_tokens >= request.num_prompt_tokens
        return (tokens if computed else None), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if not self.shares:
            return
        (ids,) = blocks.get_block_ids()
        leader = self.leaders[_key(request)]
        if leader is request:
            self.leader_blocks[request.request_id] = ids
        elif num_external_tokens:
            end = request.num_prompt_tokens - 1
            some = slice((end - num_external_tokens) // self.block_tokens, -(-end // self.block_tokens))
            for source, target in zip(self.leader_blocks[leader.request_id][some], ids[some], strict=True):
                self.copies.targets.setdefault(source, []).append(target)

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        chosen, self.copies = self.copies, Copies()
        return chosen

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        key = _key(request)
        if key in self.leaders and self.leaders[key] is request:
            del self.leaders[key]
            self.leader_blocks.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:
        return self.request_finished(request, [])

    # of the worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Takes each layer's cache [blocks, heads, tokens of a block, 2 x size of a head]."""
        self.caches = list(kv_caches.values())

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        copies = self._get_connector_metadata()
        assert isinstance(copies, Copies)
        for cache in self.caches:
            for source, targets in copies.targets.items():
                cache[targets] = cache[source].clone()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: the copies are made."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **_: Any) -> None:
        """Nothing to save: the store is the cache itself."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""


def all_see_all(groups: list[Any]) -> bool:
    """Whether all layers attend to every token before theirs: one table of blocks serves them."""
    specs = [group.kv_cache_spec for group in groups]
    windows = ("sliding_window", "attention_chunk_size")
    full = [isinstance(spec, FullAttentionSpec) and not any(getattr(spec, name) for name in windows) for spec in specs]
    return full == [True]


def _key(request: Any) -> Key:
    lora = request.lora_request
    return lora and lora.lora_name, tuple(request.prompt_token_ids)
