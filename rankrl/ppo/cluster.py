"""The Ray cluster: the one that Slurm has started, or a new one on this machine.

This file is light to import, so that Ray can be started before the heavy imports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
import torch

from rankrl.ppo.guardian import MARK, guard, kill, marked
from rankrl.ppo.ray_environment import step_address
from rankrl.ppo.transport import send_tensors_as_arrays

START_WAIT_S = "RAY_raylet_start_wait_time_s"
"""Ray's variable for the seconds that a busy head may take to answer; read once in a process."""


def start_ray(gpus: int, tell: Callable[[str], None] = print) -> None:
    """Joins the Ray cluster of this Slurm step, or starts one on this machine if there is none.

    A Ray started here serves this machine alone, on the loopback address. `gpus` is the number of
    GPUs that it pretends to have if the machine has none. Raises ConnectionError if Ray does not
    start or cannot be joined.
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
    if address := step_address(os.environ):
        ray.init(address=address, runtime_env=runtime, log_to_driver=False)
        send_tensors_as_arrays()
        return
    guard()
    pretended = {} if torch.cuda.is_available() else {"num_gpus": gpus}
    options = {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, gpus + 1),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "runtime_env": runtime,
        "log_to_driver": False,
        **pretended,
    }
    _start_here(options, tell)
    send_tensors_as_arrays()


def _start_here(options: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Starts Ray on this machine; once more if that fails, as on a busy machine.

    Ray 2.55 gives its helpers 15 s and its node 30 s, which no setting lengthens; the second time
    their files are in memory. Raises ConnectionError, one line, if it fails twice.
    """
    os.environ.setdefault(START_WAIT_S, "60")  # instead of 30
    try:
        _try_to_start(options)
    except Exception as error:  # of no particular class: Ray raises Exception, RuntimeError, OSError
        tell(f"Ray did not start ({_said(error)}); trying once more")
    else:
        return
    try:
        _try_to_start(options)
    except Exception as error:
        raise ConnectionError(
            f"Ray: did not start on this machine, tried twice ({_said(error)}); try again when the machine is "
            f"less busy, or see Ray's logs in {os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs"
        ) from error


def _try_to_start(options: dict[str, Any]) -> None:
    """Starts Ray. If that fails, ends all that it started, and raises what Ray raised."""
    mark = os.environ[MARK]
    others = marked(mark)
    try:
        ray.init(**options)
    except Exception:
        ray.shutdown()  # does nothing for a node that was never complete
        kill([process for process in marked(mark) if process not in others and process.pid != os.getpid()])
        raise


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def check_resources(gpus: int) -> None:
    """Raises ValueError if the cluster has fewer than `gpus` GPUs or CPUs.

    Ray would wait forever for what the cluster does not have.
    """
    there = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        found = int(there.get(kind, 0))
        if found < gpus:
            raise ValueError(f"placement: got {gpus} {kind}s, allowed: the {found} {kind}s of this cluster at most")
