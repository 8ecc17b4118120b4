"""The CPU accelerator: what OpenRLHF asks of CUDA, answered on a machine without a GPU. GPU runs never load this file.

`install()` runs in the driver and, as Ray's worker set-up hook, in every worker. It replaces device calls and the device name
of the process mesh.
"""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",  # several processes share the cores
    "TORCHDYNAMO_DISABLE": "1",  # upstream compiles its entropy; a C++ compiler is not a given
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class _CpuDevice(str):
    """`torch.cuda.current_device()`: upstream passes it to `.to()`, and formats it in `cuda:{...}` once."""

    def __format__(self, spec: str) -> str:
        return "0"


def install() -> None:
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import torch

    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: _CpuDevice("cpu")
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    import openrlhf.utils.deepspeed.deepspeed as strategy

    # DeepSpeed would compile this at start-up, half a minute and more, and never use it
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    mesh = strategy.init_device_mesh
    strategy.init_device_mesh = lambda device, *args, **kwargs: mesh("cpu", *args, **kwargs)


def group_adapters() -> None:
    """In an engine's process: adapters grouped by token instead of vLLM's CPU fallback, which copies their weights per token."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "rankrl.ppo.cpu_lora.GroupedAdapters")
