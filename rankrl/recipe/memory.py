"""Memory of workers and engines, by what it holds.

For GPUs the model is not confirmed by a measurement; for the CPU it is fitted to the bench.
"""

from __future__ import annotations

from rankrl.recipe.architecture import widths
from rankrl.recipe.cost import DEVICES, SHARED_PREFIXES, TRAIN_BYTES, kv_bytes_per_token, kv_shards, memory, train_bytes
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.plan import Run, adapter_params, micro_batch
from rankrl.recipe.scale import Scale

# Bytes of a token's activations in bf16, counted operation by operation on the shipped models
# without weights (tests/test_estimate.py)
INPUT_BYTES = 2
"""Per unit of hidden size: the input of a layer, which gradient checkpointing keeps."""
LAYER_BYTES = 92
"""Per unit of hidden size: a layer whose activations are kept for the backward pass (77 for 8B, 92
for 30B-A3B)."""
RECOMPUTED_BYTES = 150
"""Per unit of hidden size: one layer recomputed, and its backward pass (102 for 8B, 150 for
30B-A3B)."""
LOGIT_BYTES = 16
"""Per logit: itself, its fp32 copy, log-probability and gradients, without fused kernels."""
LOGITS_AT_ONCE = 2**26
"""Most logits of a worker at a time (ppo/head.py): 441 tokens of Qwen3-8B."""
LIVE_PARAMS = 10**9
"""DeepSpeed's default of stage3_max_live_parameters."""
PROCESS_BYTES = {"h100": 1.5e9, "cpu": 0.65e9}
"""Memory of a worker before it holds anything. GPU: CUDA context and NCCL (assumed). CPU: Python
and its libraries (fitted to `make bench`)."""
CPU_ENGINE_BYTES, CPU_ENGINE_RUN_BYTES = 2.1e9, 0.1e9  # fitted to `make bench`: an engine, and what a run adds to it
CPU_CONTROLLER_BYTES = 0.95e9  # fitted to `make bench`
Parts = dict[str, float]
"""Bytes of a process, by what they hold."""


def activation_bytes(run: Run, logits: bool) -> float:
    """Most bytes of activations in a forward and backward pass of one micro-batch.

    A policy worker has `logits`, a value worker has none.
    """
    model, lengths, wide = run.scale.model, run.scale.lengths, widths(run.scale)
    left = SHARED_PREFIXES if model.share_prefixes else 1.0
    longest = lengths.prompt_tokens + lengths.response_tokens
    tokens = run.scale.placement.micro_batch_tokens or left * micro_batch(run) * longest
    head = LOGIT_BYTES * min(tokens * (wide.vocabulary or 0), LOGITS_AT_ONCE) if logits else 0
    if model.gradient_checkpointing:
        inputs, layer = INPUT_BYTES * wide.hidden * model.layers, RECOMPUTED_BYTES * wide.hidden
        found = tokens * inputs + max(head, tokens * layer)
    else:
        found = tokens * LAYER_BYTES * wide.hidden * (model.layers + 1) + head
    return found * model.bytes_per_param / 2


def base_bytes(scale: Scale, workers: int) -> Parts:
    """Bytes of the frozen base on one of `workers` workers.

    They are its shard and what ZeRO-3 gathers for the layers at work.
    """
    model, zero = scale.model, deepspeed_config(scale)["zero_optimization"]
    whole = model.base_params * model.bytes_per_param
    if zero["stage"] != 3:
        return {"weights": whole}
    live = zero.get("stage3_max_live_parameters", LIVE_PARAMS)
    layer = model.base_params / model.layers  # gathered as a whole where it holds experts
    gathered = max(LIVE_PARAMS if live == "auto" else live, layer) * model.bytes_per_param
    offloaded = zero.get("offload_param", {}).get("device", "none") != "none"
    return {"weights": 0 if offloaded else whole / workers, "gathered": min(gathered, whole)}


def offloaded_bytes(scale: Scale) -> float:
    """Bytes of the base that are offloaded to the memory of each host of workers."""
    zero, place, model = deepspeed_config(scale)["zero_optimization"], scale.placement, scale.model
    if zero.get("offload_param", {}).get("device") != "cpu":
        return 0.0
    bases = 2 if place.critic_per_node else 1
    return bases * model.base_params * model.bytes_per_param / place.nodes


def engine_bytes(scale: Scale, rank: int, parallel_runs: int) -> Parts:
    """Bytes of an engine on one of its GPUs.

    The KV cache gets what the other parts leave of vLLM's share; below 0, the engine does not
    start.
    """
    place, model = scale.placement, scale.model
    weights = model.base_params * model.bytes_per_param / place.tensor_parallel
    adapters = parallel_runs * adapter_params(scale, rank) * model.bytes_per_param
    if place.device == "cpu":
        process = CPU_ENGINE_BYTES + parallel_runs * CPU_ENGINE_RUN_BYTES
        return {"weights": weights, "adapters": adapters, "process and cache": process}
    room = DEVICES[place.device].memory_bytes * place.engine_memory - weights - adapters
    return {"weights": weights, "adapters": adapters, "KV cache": room}


def kv_tokens(scale: Scale, room_bytes: float) -> int:
    """Number of tokens whose keys and values fit an engine's KV cache.

    `room_bytes` is its size on each GPU of the engine.
    """
    return int(room_bytes * kv_shards(scale) / kv_bytes_per_token(scale))


def memory_bytes(run: Run, rank: int, parallel_runs: int) -> dict[str, Parts]:
    """Bytes of each process by part, with `parallel_runs` runs at once.

    `rank` is that of their adapters (the largest of the runs), of which they train what `run` does.
    """
    scale, place = run.served, run.served.placement
    process, critic_ranks = PROCESS_BYTES[place.device], run.critic_ranks
    per_param_bytes = train_bytes(run) / (run.trainable_params + run.frozen_params)
    trained = memory(scale, per_param_bytes * adapter_params(scale, rank), critic_ranks).run
    found = {
        "policy worker": {
            **base_bytes(scale, place.policy_workers),
            "adapters": parallel_runs * trained,
            "activations": activation_bytes(run, logits=True),
            "process": process,
        }
    }
    if place.critic_per_node:
        found["value worker"] = {
            **base_bytes(scale, place.value_workers),
            "adapters": parallel_runs * TRAIN_BYTES * adapter_params(scale, critic_ranks),
            "activations": activation_bytes(run, logits=False),
            "process": process,
        }
    return {**found, "engine": engine_bytes(scale, rank, parallel_runs)}
