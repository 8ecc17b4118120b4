"""Which requests copy the blocks of a prompt, and which of them compute it.

That an engine samples the same with it as without is in one_bench/test_shared_prompts.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

BLOCK_TOKENS = 4
PROMPT = [5, 6, 7, 8, 9, 10]


class Request:
    """What the connector reads of vLLM's request."""

    def __init__(self, name: str, prompt: list[int], adapter: str | None = None):
        self.request_id, self.prompt_token_ids, self.num_prompt_tokens = name, prompt, len(prompt)
        self.lora_request = adapter and SimpleNamespace(lora_name=adapter)
        self.num_computed_tokens = 0


@pytest.fixture
def connector():
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from rankrl.ppo.cpu_prompts import SharedPrompts

    config = SimpleNamespace(cache_config=SimpleNamespace(block_size=BLOCK_TOKENS), kv_transfer_config="any")
    return SharedPrompts(config, KVConnectorRole.SCHEDULER, SimpleNamespace(kv_cache_groups=[layers()]))


def layers(window: int | None = None):
    """vLLM's group of layers that attend to all tokens, or to a window of them."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec

    size = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    return KVCacheGroupSpec(
        ["l"], SlidingWindowSpec(**size, sliding_window=window) if window else FullAttentionSpec(**size)
    )


def asks(connector, request, computed=0):
    tokens, later = connector.get_num_new_matched_tokens(request, computed)
    assert not later
    return tokens


def runs(connector, request, blocks, copied=0):
    """vLLM gives the request its blocks and schedules the rest of its prompt."""
    connector.update_state_after_alloc(request, SimpleNamespace(get_block_ids=lambda: (blocks,)), copied)
    copies = connector.build_connector_meta(None).targets
    request.num_computed_tokens = request.num_prompt_tokens
    return copies


def test_the_first_request_of_a_prompt_computes_it_and_the_next_copy_all_but_the_last_token(connector):
    first, second, third = (Request(name, PROMPT) for name in "abc")
    assert (asks(connector, first), asks(connector, second)) == (0, None)
    assert runs(connector, first, [10, 11]) == {}
    assert (asks(connector, second), asks(connector, third)) == (5, 5)
    assert runs(connector, second, [20, 21], 5) == {10: [20], 11: [21]}
    assert runs(connector, third, [30, 31], 5) == {10: [30], 11: [31]}
    assert connector.build_connector_meta(None).targets == {}, "once"


def test_blocks_of_vllms_own_prefix_cache_are_not_copied(connector):
    first, second = Request("a", PROMPT), Request("b", PROMPT)
    asks(connector, first)
    runs(connector, first, [10, 11])
    assert asks(connector, second, computed=4) == 1
    assert runs(connector, second, [10, 21], 1) == {11: [21]}


def test_prompts_of_other_tokens_or_adapters_are_others(connector):
    requests = [
        Request("a", PROMPT),
        Request("b", PROMPT[:-1]),
        Request("c", PROMPT, "adapter-1-version-1"),
        Request("d", PROMPT, "adapter-1-version-2"),
    ]
    assert [asks(connector, request) for request in requests] == [0, 0, 0, 0]


def test_a_prompt_of_one_token_is_never_waited_for(connector):
    assert [asks(connector, Request(name, [5])) for name in "ab"] == [0, 0]


def test_when_the_first_has_finished_or_lost_its_blocks_nobody_copies_from_it(connector):
    first, second, third = (Request(name, PROMPT) for name in "abc")
    asks(connector, first)
    runs(connector, first, [10, 11])
    first.num_computed_tokens = 0  # vLLM took its blocks away to make room; it will compute them again
    assert (asks(connector, first), asks(connector, second)) == (0, None)
    assert connector.request_finished(first, [10, 11]) == (False, None)
    assert (asks(connector, second), asks(connector, third)) == (0, None), "the second is the first now"
    connector.request_finished(third, [])
    assert asks(connector, third) is None, "only the end of the first one ends its prompt"
    connector.request_finished(second, [])
    assert connector.leaders == connector.leader_blocks == {}


def test_whole_blocks_are_copied_in_every_layer(connector):
    from rankrl.ppo.cpu_prompts import Copies

    caches = {name: torch.arange(6.0).view(6, 1, 1, 1) + start for name, start in (("one", 0), ("two", 10))}
    connector.register_kv_caches(caches)
    connector.bind_connector_metadata(Copies({1: [3, 5], 2: [0]}))
    connector.start_load_kv(None)
    assert caches["one"].flatten().tolist() == [2, 1, 2, 1, 4, 1]
    assert caches["two"].flatten().tolist() == [12, 11, 12, 11, 14, 11]


def test_nothing_is_shared_where_a_layer_sees_a_window_only(connector):
    from rankrl.ppo.cpu_prompts import all_see_all

    assert all_see_all([layers()])
    assert not any(map(all_see_all, ([layers(9)], [layers(), layers()], [])))
    connector.shares = False
    assert [asks(connector, Request(name, PROMPT)) for name in "ab"] == [0, 0]
    assert runs(connector, Request("c", PROMPT), [10, 11]) == {}
