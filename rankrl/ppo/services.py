"""Services hold a base, runs hold adapters: workers and engines, started once and used by one run after another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ray
import torch
from openrlhf.trainer.ray.launcher import RayActorGroup
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rankrl.ppo.arguments import arguments
from rankrl.ppo.critic import ValueWorker
from rankrl.ppo.engine import RemoteEngine
from rankrl.ppo.guardian import guard
from rankrl.ppo.policy import PolicyWorker
from rankrl.ppo.serving import serving_rank
from rankrl.ppo.strategy import AdapterStrategy
from rankrl.recipe.plan import Run, deepspeed_config
from rankrl.recipe.scale import Model

EMBEDDED = {"embedded:nano": Path(__file__).parents[1] / "data" / "nano_model"}


def resolve_model(model: Model) -> str:
    """Local directory of the base, fetched from the hub if need be.

    Raises ValueError for a missing model, or for one that wants to run code of its own.
    """
    path = EMBEDDED.get(model.path) or Path(model.path)
    if not path.is_dir():
        path = _fetch(model)
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(
            f"model.path: got {model.path!r}, allowed: a Hugging Face model directory; {path} has no config.json"
        )
    for file in (config, path / "tokenizer_config.json"):
        if file.is_file() and "auto_map" in json.loads(file.read_text()) and not model.trust_remote_code:
            raise ValueError(
                f"model.trust_remote_code: got False, but {file.name} of {model.path} wants to run code that comes with the "
                "model; set it to true if you trust that code"
            )
    return str(path)


def _fetch(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.path, revision=model.revision))
    except Exception as error:
        raise ValueError(
            f"model.path: got {model.path!r}, allowed: an existing directory, or a hub id that this machine can reach "
            f"({type(error).__name__})"
        ) from error


def start_ray(processes: int) -> None:
    """Joins the cluster of this Slurm step if there is one; otherwise starts Ray here, on loopback, alone on this machine."""
    environment = {
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    runtime: dict[str, Any] = {"env_vars": environment}
    if not torch.cuda.is_available():
        from rankrl.ppo import cpu

        runtime = {
            "env_vars": {**environment, **cpu.ENVIRONMENT},
            "worker_process_setup_hook": "rankrl.ppo.cpu.install",
        }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", runtime_env=runtime, log_to_driver=False)
        return
    guard()
    pretended = {} if torch.cuda.is_available() else {"num_gpus": processes}  # on a CPU, Ray's GPUs count processes
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, processes + 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        runtime_env=runtime,
        log_to_driver=False,
        **pretended,
    )


def check_resources(processes: int) -> None:
    """Raises ValueError if the cluster is too small: Ray would wait for ever for what it does not have."""
    there = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        found = int(there.get(kind, 0))
        if found < processes:
            ray.shutdown()
            raise ValueError(
                f"placement: got {processes} processes with a {kind} each, allowed: the {found} {kind}s of this cluster at most"
            )


class RunView:
    """One run's view of a worker group, with the two methods that upstream's trainer and experience maker call on groups."""

    def __init__(self, group: RayActorGroup, name: str, renamed: dict[str, str] | None = None):
        self.group, self.name, self.renamed = group, name, renamed or {}

    def async_run_method(self, method_name: str, **kwargs: Any) -> list[Any]:
        return self.group.async_run_method("call", self.name, self.renamed.get(method_name, method_name), kwargs)

    def async_run_method_batch(self, method_name: str, **kwargs: Any) -> list[Any]:
        names = [self.name] * len(next(iter(kwargs.values())))
        return self.group.async_run_method_batch(self.renamed.get(method_name, method_name), run_names=names, **kwargs)


class Services:
    """Worker groups and engines of one scale. `max_rank` bounds the adapters they can serve."""

    def __init__(self, run: Run, max_rank: int):
        self.scale, self.model_path = run.scale, resolve_model(run.scale.model)
        place = self.scale.placement
        processes = (
            place.nodes * (place.policy_per_node + place.critic_per_node) + place.engines * place.tensor_parallel
        )
        args = arguments(run, self.model_path)  # refuses a bad run before anything is started
        start_ray(processes)
        check_resources(processes)
        self.engines = start_engines(run.scale, self.model_path, max_rank)
        strategy = AdapterStrategy(args, deepspeed_config(self.scale))
        self.policy = RayActorGroup(place.nodes, place.policy_per_node, ray.remote(num_gpus=1)(PolicyWorker))
        self.critic = RayActorGroup(place.nodes, place.critic_per_node, ray.remote(num_gpus=1)(ValueWorker))
        load = (strategy, self.model_path, self.scale.model.modules, self.scale.model.layers)
        loading = [ref for group in (self.policy, self.critic) for ref in group.async_init_model_from_pretrained(*load)]
        ray.get(loading + [engine.get_num_unfinished_requests.remote() for engine in self.engines])
        self.adapters = 0

    def next_adapter_id(self) -> int:
        self.adapters += 1
        return self.adapters

    def detach(self, name: str, adapter_id: int) -> None:
        """Forgets a run everywhere."""
        refs = [ref for group in (self.policy, self.critic) for ref in group.async_run_method("detach", name)]
        ray.get(refs + [engine.drop_adapter.remote(adapter_id) for engine in self.engines])

    def stop(self) -> None:
        ray.shutdown()


def start_engines(scale: Any, model_path: str, max_rank: int) -> list[Any]:
    """One vLLM actor per engine, each with its own GPUs; adapters of up to `max_rank` are served."""
    place = scale.placement
    tensor_parallel = place.tensor_parallel
    bundles = [{"GPU": 1, "CPU": 1}] * tensor_parallel
    engines = []
    for i in range(place.engines):
        group = placement_group(bundles, strategy="STRICT_PACK")
        ray.get(group.ready())
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_capture_child_tasks=True)
        engines.append(
            RemoteEngine.options(num_cpus=1, num_gpus=int(tensor_parallel == 1), scheduling_strategy=strategy).remote(
                **engine_arguments(scale, model_path, max_rank, i)
            )
        )
    return engines


def engine_arguments(scale: Any, model_path: str, max_rank: int, index: int) -> dict[str, Any]:
    """vLLM's arguments, as upstream's `create_vllm_engines` sets them, with adapters on."""
    place = scale.placement
    return {
        "model": model_path,
        "dtype": "bfloat16",
        "seed": index,
        "max_model_len": scale.lengths.prompt_tokens + scale.lengths.response_tokens,
        "tensor_parallel_size": place.tensor_parallel,
        "distributed_executor_backend": "uni" if place.tensor_parallel == 1 else "ray",
        "bundle_indices": list(range(place.tensor_parallel)) if place.tensor_parallel > 1 else None,
        "num_gpus": 1,
        "gpu_memory_utilization": place.engine_memory,
        "enable_prefix_caching": True,
        "enforce_eager": not torch.cuda.is_available(),
        "trust_remote_code": scale.model.trust_remote_code,
        "worker_extension_cls": "rankrl.ppo.receiver.AdapterReceiver",
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 2,
        "max_lora_rank": serving_rank(max_rank),
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
    }
