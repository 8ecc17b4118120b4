"""Services: workers and engines that hold a base, started once and used by many runs at a time.

Runs bring the adapters.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import ray
import torch
from openrlhf.models.model import _get_critic_model
from torch import nn
from transformers import AutoModel

from rankrl.data.base_model import local_directory
from rankrl.ppo.arguments import arguments
from rankrl.ppo.cluster import check_resources, start_ray
from rankrl.ppo.critic import ValueWorker
from rankrl.ppo.engine import RemoteEngine
from rankrl.ppo.groups import ValueRole, WorkerGroup, value_names
from rankrl.ppo.placement import Seat, take_seats
from rankrl.ppo.policy import PolicyWorker
from rankrl.ppo.strategy import AdapterStrategy
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.plan import Run
from rankrl.recipe.rank_table import serving_rank
from rankrl.recipe.scale import Model, Scale
from rankrl.reward.grade import Grader

MAX_SEQUENCES = 1024
"""Most requests that an engine decodes at once. vLLM's default on small devices is 256, less than a
few packed rollouts need."""
MAX_BATCHED_TOKENS = 8192  # most tokens in one engine step
FATAL = (ray.exceptions.RayError, torch.AcceleratorError, torch.OutOfMemoryError)
"""Causes of a worker's error after which its process or its GPU is gone."""


def resolve_model(model: Model) -> str:
    """Local directory of the base, downloaded from the hub if needed.

    Raises ValueError for a missing model, for one that wants to run code of its own, or for a
    precision that engines cannot serve.
    """
    path = local_directory(model)
    if model.dtype == "float32" and torch.cuda.is_available():
        raise ValueError(
            "model.dtype: got float32, allowed: bfloat16 on a GPU, because vLLM's LoRA kernels take nothing wider "
            "(scale.model.dtype=bfloat16)"
        )
    return str(path)


class Services:
    """Worker groups and engines of one scale.

    They serve `parallel_runs` runs at a time, with adapters of rank up to `max_rank`. There are
    value workers only if `run` has a critic, and then all may have one.
    """

    def __init__(self, run: Run, max_rank: int, parallel_runs: int):
        self.scale, self.model_path = run.served, resolve_model(run.scale.model)
        self._broken = threading.Event()
        place = self.scale.placement
        args = arguments(run, self.model_path)  # refuses a bad run before anything is started
        if not ray.is_initialized():
            start_ray(place.gpus)
        check_resources(place.gpus)
        self.seats = take_seats(place)
        self.engines = start_engines(self.seats.engines, self.scale, self.model_path, max_rank, parallel_runs)
        strategy = AdapterStrategy(args, deepspeed_config(self.scale), self.scale)
        separate = place.critic_per_node > 0
        worker = ray.remote(num_gpus=1)(TrainerWorker if run.critic and not separate else PolicyWorker)
        self.policy = WorkerGroup(place, self.seats.policy, worker)
        self.critic: Any = ValueRole(self.policy) if run.critic else None  # or a WorkerGroup, from here on
        self.groups = [self.policy]
        if separate:  # never without a critic
            self.critic = WorkerGroup(place, self.seats.value, ray.remote(num_gpus=1)(ValueWorker))
            self.groups.append(self.critic)
        load = (strategy, self.model_path, self.scale.model.modules, self.scale.model.layers)
        loading = [ref for group in self.groups for ref in group.async_init_model_from_pretrained(*load)]
        ray.get(loading + [engine.ready.remote() for engine in self.engines])
        roles = [role for role in (self.policy, self.critic) if role]
        self.policy_shapes, *value_shapes = ray.get([role.async_run_method("shapes")[0] for role in roles])
        self.value_shapes = value_shapes[0] if value_shapes else {}
        self.adapter_ids = itertools.count(1)
        self._asleep = False
        self.grader = Grader()

    @property
    def broken(self) -> bool:
        """Whether a service has died. Runs then continue on new services."""
        return self._broken.is_set()

    def mark_broken(self) -> None:
        """Marks the services as broken. Any thread that sees a service die may call it."""
        self._broken.set()

    def died_of(self, error: BaseException) -> bool:
        """Whether the state of the services can no longer be trusted after `error`.

        That is so if a process or its GPU is gone, or if one of several workers raised while the
        others wait for it. A ValueError is one of our own checks, which fails on all workers
        together.
        """
        if not isinstance(error, ray.exceptions.RayError):
            return False
        cause = getattr(error, "cause", None)
        if not isinstance(error, ray.exceptions.RayTaskError) or isinstance(cause, FATAL):
            return True
        alone = all(len(group.workers) == 1 for group in self.groups)
        return not (alone or isinstance(cause, ValueError))

    def sleep(self) -> None:
        """Lets engines give their memory to the workers, where the scale says so."""
        if self.scale.engine.sleep:
            ray.get([engine.sleep.remote() for engine in self.engines])
            self._asleep = True

    def wake(self) -> None:
        """Lets engines take their memory back, if they sleep."""
        if self._asleep:
            ray.get([ref for group in self.groups for ref in group.async_run_method("empty_cache")])
            ray.get([engine.wake_up.remote() for engine in self.engines])
            self._asleep = False

    def detach(self, name: str, adapter_id: int) -> None:
        """Removes a run from all workers and engines."""
        self.wake()
        refs = self.policy.async_run_method("detach", name)
        for value in value_names(name) if self.critic else ():  # also one that is not there
            refs += self.critic.async_run_method("detach", value)
        ray.get(refs + [engine.drop_adapter.remote(adapter_id) for engine in self.engines])

    def stop(self) -> None:
        """Ends all workers and engines.

        Ray stays, so that calls of other threads end with an error instead of waiting forever.
        """
        for group in self.groups:
            group.stop()
        for engine in self.engines:
            ray.kill(engine)
        self.grader.close()
        self.seats.leave()


def start_engines(seats: list[list[Seat]], scale: Scale, model_path: str, max_rank: int, adapters: int) -> list[Any]:
    """Starts one vLLM actor per engine.

    Each serves up to `adapters` adapters of rank up to `max_rank` at once.
    """
    alone = scale.placement.tensor_parallel == 1  # else vLLM's own workers hold the GPUs
    environment = {"VLLM_BATCH_INVARIANT": "1"} if scale.engine.batch_invariant else {}
    runtime = {"runtime_env": {"env_vars": environment}} if environment else {}
    return [
        RemoteEngine.options(**engine[0].options(None if alone else 0), **runtime).remote(
            **engine_arguments(scale, model_path, max_rank, adapters, index, engine)
        )
        for index, engine in enumerate(seats)
    ]


def engines_alone(scale: Scale, model_path: str, max_rank: int) -> list[Any]:
    """The engines of a scale without its trainers, ready to serve one adapter of up to `max_rank`.

    Raises ValueError if the cluster has no room for them.
    """
    place = scale.placement.engines_only
    check_resources(place.gpus)
    engines = start_engines(take_seats(place).engines, scale, model_path, max_rank, 1)
    ray.get([engine.ready.remote() for engine in engines])
    return engines


def engine_arguments(
    scale: Scale, model_path: str, max_rank: int, adapters: int, index: int, seats: list[Seat]
) -> dict[str, Any]:
    """vLLM's engine arguments, as upstream's `create_vllm_engines` sets them, with adapters on."""
    place, max_model_tokens = scale.placement, scale.lengths.prompt_tokens + scale.lengths.response_tokens
    return {
        "model": model_path,
        "dtype": scale.model.dtype,
        "seed": index,
        "max_model_len": max_model_tokens,
        "tensor_parallel_size": place.tensor_parallel,
        "distributed_executor_backend": "uni" if place.tensor_parallel == 1 else "ray",
        "bundle_indices": [seat.bundle for seat in seats] if place.tensor_parallel > 1 else None,
        "num_gpus": seats[0].share,
        "gpu_memory_utilization": place.engine_memory,
        "enable_prefix_caching": True,
        "max_num_seqs": MAX_SEQUENCES,
        "disable_log_stats": True,
        "enforce_eager": not torch.cuda.is_available(),
        # a sequence takes whole blocks: 128 tokens each on a CPU, and new ones are in no cache
        "block_size": None if torch.cuda.is_available() else min(128, -(-max_model_tokens // 32) * 32),
        # vLLM rewinds a request's random generator after a prompt chunk; a CPU generator cannot
        "enable_chunked_prefill": torch.cuda.is_available(),
        "max_num_batched_tokens": max(MAX_BATCHED_TOKENS, max_model_tokens),
        "trust_remote_code": scale.model.trust_remote_code,
        "enable_sleep_mode": scale.engine.sleep,
        "worker_extension_cls": "rankrl.ppo.receiver.AdapterReceiver",
        "enable_lora": True,
        "max_loras": adapters,
        "max_cpu_loras": adapters + 1,
        "max_lora_rank": serving_rank(max_rank),
        "logprobs_mode": "processed_logprobs",  # those of the distribution that is sampled from
    }


def critic_on(model: nn.Module, value_head_prefix: str) -> nn.Module:
    """Upstream's critic model on the decoder of the causal language model `model`.

    The decoder replaces the one that the critic would load.
    """
    config = model.config
    config.normalize_reward = False
    base = AutoModel._model_mapping[type(config)]
    with torch.device("meta"):
        critic = _get_critic_model(base.__base__, base, value_head_prefix)(config)
    setattr(critic, critic.base_model_prefix, model.base_model)
    return critic


class TrainerWorker(PolicyWorker):
    """A policy worker with a value worker inside.

    The two share the base, the host of its adapters and the process group.
    """

    def init_model_from_pretrained(
        self, strategy: AdapterStrategy, path: str, modules: dict[str, list[int]], layers: int
    ) -> None:
        super().init_model_from_pretrained(strategy, path, modules, layers)
        self.value = ValueWorker.__new__(ValueWorker)  # its own __init__ would join a process group
        self.value.strategy = strategy
        self.value.hold(critic_on(self.host.base, strategy.args.ds.value_head_prefix), self.host)

    def as_value(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the value worker and returns its result.

        Arguments are the call's own: of what is inside a tuple, Ray resolves no references.
        """
        return getattr(self.value, method)(*args, **kwargs)
