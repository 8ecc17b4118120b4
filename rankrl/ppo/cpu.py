"""Stand-ins for what OpenRLHF asks of CUDA, on a machine without a GPU.

`install()` runs in the driver and, as Ray's worker set-up hook, in every worker: it replaces device
calls. The other functions run where what they change is used, so that no process imports it for
their sake alone. GPU runs never load this file.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",  # several processes share the cores
    "TORCHDYNAMO_DISABLE": "1",  # upstream compiles its entropy; a C++ compiler may be missing
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class _CpuDevice(str):
    """What `torch.cuda.current_device()` returns on a CPU.

    Upstream passes it to `.to()`, which needs "cpu", and once formats it in `cuda:{...}`, which
    needs "0".
    """

    def __format__(self, spec: str) -> str:
        return "0"


def install() -> None:
    """Replaces CUDA device calls in this process, and sets `ENVIRONMENT` where it is not set."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import torch

    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: _CpuDevice("cpu")
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)


def use_deepspeed() -> None:
    """Lets a policy or value worker use DeepSpeed: replaces the device name of its process mesh.

    It also keeps DeepSpeed from compiling, at start-up, what it never uses (half a minute or more).
    """
    import openrlhf.utils.deepspeed.deepspeed as strategy

    # by its full name: the attribute `torch` of deepspeed.comm is PyTorch
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    mesh = strategy.init_device_mesh
    strategy.init_device_mesh = lambda device, *args, **kwargs: mesh("cpu", *args, **kwargs)


def group_adapters() -> None:
    """Makes vLLM in this process group tokens by adapter.

    vLLM's own CPU fallback copies the adapter's weights once per token.
    """
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "rankrl.ppo.cpu_lora.GroupedAdapters")


def shared_prompts() -> Any:
    """vLLM's setting by which an engine computes the prompt of several samples once."""
    from vllm.config import KVTransferConfig

    path = "rankrl.ppo.cpu_prompts"
    return KVTransferConfig(kv_connector="SharedPrompts", kv_connector_module_path=path, kv_role="kv_both")
