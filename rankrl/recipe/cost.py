"""What a seed costs: seconds and memory of a packed sweep, from the shapes of a scale.

A forward pass takes 2 P operations per token (P: active parameters of the base), the backward pass
through frozen weights another 2 P. Formulas and their limits: docs/cost.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankrl.recipe.architecture import widths
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.plan import Run, adapter_params, micro_batch
from rankrl.recipe.rank_table import WEIGHT_BYTES
from rankrl.recipe.scale import Scale


@dataclass(frozen=True)
class Device:
    """What one worker or engine process computes on.

    Rates are those that are reached, not those of the data sheet.
    """

    prefill_flops: float
    """Operations per second of an engine."""
    train_flops: float
    """Operations per second of a worker."""
    bandwidth_bytes_s: float
    memory_bytes: float
    link_bytes_s: float
    """Rate of the object store and network that an adapter is sent through."""
    engine_step_s: float
    """Overhead of an engine step, in seconds."""
    request_s: float
    """Overhead of a request, in seconds."""
    run_step_s: float
    """Overhead of one PPO step of a run in controller and workers, in seconds."""
    start_s: float
    """Seconds that services take to start."""


DEVICES = {
    # H100 SXM: 45 % and 35 % of 989 TFLOP/s dense bf16, 60 % of 3.35 TB/s, as reported for such
    # models. Not measured here.
    "h100": Device(445e12, 346e12, 2.0e12, 80e9, 2e9, 0.003, 2e-4, 0.3, 240.0),
    # one of three processes on two 2.3 GHz AVX-512 cores in fp32, fitted to `make bench` at nano
    "cpu": Device(60e9, 60e9, 8e9, 24e9, 1e9, 0.008, 3e-4, 0.12, 30.0),
}
PREVIOUS_SHARE = 0.5
"""Share of a rollout on which the previous adapter is evaluated too (64 of 128 samples, for the
canary)."""
SHARED_PREFIXES = 0.4
"""Share of a micro-batch's tokens that is left when common prefixes are computed once (nano)."""
KV_BLOCK_TOKENS = 16
TRAIN_BYTES = 5 * WEIGHT_BYTES
"""Bytes of an adapter parameter in training: weight, gradient, AdamW's two moments and previous
weight, in fp32."""


def train_bytes(run: Run) -> int:
    """Bytes of the policy adapter of a run in training.

    Frozen parameters have no gradient and no moments; the spectral optimizer keeps one moment.
    """
    copies = 2 + run.recipe.kl_anchor.moves  # now, before the last update, and the anchor
    weights = copies * (run.trainable_params + run.frozen_params)
    return WEIGHT_BYTES * (weights + (1 + run.recipe.optimizer.moments) * run.trainable_params)


@dataclass(frozen=True)
class Cost:
    """Seconds of one PPO step of a run, by phase, and of the whole run, alone and packed."""

    rollout_s: float
    experience_s: float
    update_s: float
    sync_s: float
    run_s: float
    """Seconds of the whole run alone on warm services, evaluations included."""
    packed_s: float
    """Seconds of the whole run as one of K: its share of the time that they take together."""


def kv_bytes_per_token(scale: Scale) -> int:
    """Bytes of a token's keys and values over all layers.

    The output width of k_proj is taken as the width of keys and of values; where keys come out of a
    fused module, config.json gives it.
    """
    modules = scale.model.modules
    width = modules["k_proj"][1] if "k_proj" in modules else widths(scale).keys or max(modules.values())[1]
    return 2 * scale.model.layers * width * scale.model.bytes_per_param


def kv_shards(scale: Scale) -> int:
    """Number of GPUs that an engine's KV cache is split over.

    With fewer key-value heads than GPUs, vLLM keeps copies.
    """
    place = scale.placement
    return min(place.tensor_parallel, widths(scale).kv_heads or place.tensor_parallel)


def concurrent_sequences(scale: Scale) -> int:
    """Number of sequences of half the possible length that fit an engine's KV cache."""
    place, model, device = scale.placement, scale.model, DEVICES[scale.placement.device]
    weights = model.base_params * model.bytes_per_param / place.tensor_parallel
    free = (device.memory_bytes * place.engine_memory - weights) * kv_shards(scale)
    length = (scale.lengths.prompt_tokens + scale.lengths.response_tokens) / 2
    return max(1, int(free / (kv_bytes_per_token(scale) * length)))


def generation_s(scale: Scale, samples: int, prompts: int) -> float:
    """Seconds in which the engines answer `samples` requests for `prompts` different prompts.

    All requests are sent at once. Each decoding step reads the weights once for the whole batch;
    prompts and answers are assumed to be half as long as they may be.
    """
    place, model, device = scale.placement, scale.model, DEVICES[scale.placement.device]
    per_engine = -(-samples // place.engines)
    batch = min(per_engine, concurrent_sequences(scale))
    waves = per_engine / batch  # a finished sequence makes room for the next
    answer, prompt = scale.lengths.response_tokens / 2, scale.lengths.prompt_tokens / 2
    touched = min(model.base_params, model.active * batch)  # sequences choose their own experts
    weights = touched * model.bytes_per_param / place.tensor_parallel
    cache = batch * kv_bytes_per_token(scale) * (prompt + answer / 2) / kv_shards(scale)
    arithmetic = 2 * model.active * batch / (device.prefill_flops * place.tensor_parallel)
    step_s = max((weights + cache) / device.bandwidth_bytes_s, arithmetic) + device.engine_step_s
    distinct = prompts if prompt >= KV_BLOCK_TOKENS else samples  # vLLM shares whole blocks of a prompt
    prefill_tokens = distinct * prompt / place.engines
    prefill_s = 2 * model.active * prefill_tokens / (device.prefill_flops * place.tensor_parallel)
    return prefill_s + waves * answer * step_s + per_engine * device.request_s


def cost(run: Run, parallel_runs: int) -> Cost:
    """Cost of `run` alone, and as one of `parallel_runs` runs like it.

    Packed runs share engine steps in their rollouts, and engines work while workers do.
    """
    scale, recipe = run.served, run.recipe
    place, model, device = scale.placement, scale.model, DEVICES[scale.placement.device]
    samples = run.rollout_samples
    tokens = samples * (scale.lengths.prompt_tokens + scale.lengths.response_tokens) / 2
    tokens *= SHARED_PREFIXES if model.share_prefixes else 1.0
    forward_s = 2 * model.active * tokens / device.train_flops
    update = 3 if model.gradient_checkpointing else 2  # forward passes that an update costs
    policy_s, value_s = forward_s / place.policy_workers, run.critic * forward_s / place.value_workers
    apart = place.critic_per_node and not place.colocated
    together = max if apart else sum  # on separate GPUs, or one after the other on the same
    experience_s = together(((2 + PREVIOUS_SHARE) * policy_s, run.critics * value_s))  # all judge all samples
    update_s = together((update * policy_s, update * value_s))  # each critic learns from its own share
    busiest_s = together(((2 + PREVIOUS_SHARE + update) * policy_s, (run.critics + update) * value_s))
    sync_s = run.trainable_params * model.bytes_per_param / device.link_bytes_s
    rollout_s = generation_s(scale, samples, run.prompts)
    evaluations = 1 + (recipe.steps - 1) // recipe.eval_every if recipe.eval_every else 1
    items, eval_samples = scale.data.eval_items, scale.sampling.eval_samples
    evaluation_s = evaluations * generation_s(scale, items * eval_samples, items)
    phases_s = rollout_s + experience_s + update_s
    if scale.engine.one_step_off:
        phases_s = max(rollout_s, experience_s + update_s)
    run_s = recipe.steps * (phases_s + sync_s + device.run_step_s) + evaluation_s
    together_s = generation_s(scale, samples * parallel_runs, run.prompts * parallel_runs) / parallel_runs
    shared_s = together_s + busiest_s if place.colocated else max(together_s, busiest_s)
    packed_s = recipe.steps * (shared_s + sync_s + device.run_step_s) + evaluation_s
    return Cost(rollout_s, experience_s, update_s, sync_s, run_s, packed_s if parallel_runs > 1 else run_s)


def gathers(run: Run) -> float:
    """How often a policy worker gathers the whole base in a PPO step of `run` under ZeRO-3.

    Each micro-batch of the experience passes 2.5 times (policy, reference, half of them for the
    previous adapter), each of the update forwards and backwards, and once more where activations
    are recomputed; values of a critic on the same base pass once, and are trained alike.
    """
    scale = run.served
    place, lengths = scale.placement, scale.lengths
    samples = run.train_batch / place.policy_workers  # of an optimizer step
    batches = samples / micro_batch(run)
    if place.micro_batch_tokens:  # as many as the share with the most tokens needs, one more than the mean
        tokens = samples * (lengths.prompt_tokens + lengths.response_tokens) / 2
        batches = min(samples, tokens // place.micro_batch_tokens + 1)
    update = 3 if scale.model.gradient_checkpointing else 2
    value = run.critics + update if run.critic and not place.critic_per_node else 0
    return run.updates * batches * (2 + PREVIOUS_SHARE + update + value)


@dataclass(frozen=True)
class Memory:
    """Bytes per process: a policy worker, a value worker, an engine.

    `run` is what one more run adds to a policy worker.
    """

    policy: float
    critic: float
    engine: float
    run: float


def memory(scale: Scale, adapter_bytes: float, critic_ranks: int) -> Memory:
    """Bytes of weights under the ZeRO stage, and of one run's adapters with their optimizers.

    The policy's adapter takes `adapter_bytes` in training; `critic_ranks` is the sum of the
    ranks of the run's value adapters, 0 without any.
    Activations are not included.
    """
    place, model = scale.placement, scale.model
    weights = model.base_params * model.bytes_per_param
    sharded = deepspeed_config(scale)["zero_optimization"]["stage"] == 3
    shards = [workers if sharded else 1 for workers in (place.policy_workers, place.value_workers)]
    return Memory(
        weights / shards[0],
        weights / shards[1] if place.critic_per_node else 0.0,
        weights / place.tensor_parallel,
        adapter_bytes + TRAIN_BYTES * (0 if place.critic_per_node else adapter_params(scale, critic_ranks)),
    )
