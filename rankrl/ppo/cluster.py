"""The Ray cluster: the one that Slurm has started, or a new one on this machine.

This file is light to import, so that Ray can be started before the heavy imports.
"""

from __future__ import annotations

import os
from typing import Any

import ray
import torch

from rankrl.ppo.guardian import guard
from rankrl.ppo.transport import send_tensors_as_arrays


def start_ray(gpus: int) -> None:
    """Joins the Ray cluster of this Slurm step, or starts one on this machine if there is none.

    A Ray started here serves this machine alone, on the loopback address. `gpus` is the number of
    GPUs that it pretends to have if the machine has none.
    """
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
    """Raises ValueError if the cluster has fewer than `gpus` GPUs or CPUs.

    Ray would wait forever for what the cluster does not have.
    """
    there = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        found = int(there.get(kind, 0))
        if found < gpus:
            raise ValueError(f"placement: got {gpus} {kind}s, allowed: the {found} {kind}s of this cluster at most")
