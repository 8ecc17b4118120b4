"""The Ray cluster: the one that Slurm has started, or one on this machine. Light to import, so it starts beside heavy imports."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch

from rankrl.ppo.guardian import guard
from rankrl.ppo.transport import send_tensors_as_arrays


def start_ray(gpus: int) -> None:
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
        send_tensors_as_arrays()
        return
    guard()
    pretended = {} if torch.cuda.is_available() else {"num_gpus": gpus}
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, gpus + 1),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        runtime_env=runtime,
        log_to_driver=False,
        **pretended,
    )
    send_tensors_as_arrays()


def check_resources(gpus: int) -> None:
    """Raises ValueError if the cluster is too small: Ray would wait for ever for what it does not have."""
    there = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        found = int(there.get(kind, 0))
        if found < gpus:
            raise ValueError(f"placement: got {gpus} {kind}s, allowed: the {found} {kind}s of this cluster at most")
