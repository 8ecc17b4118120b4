"""Stand-ins for what OpenRLHF asks of CUDA, on a machine without a GPU.

`install()` runs in the driver and, as Ray's worker set-up hook, in every worker. It replaces device
calls and the device name of the process mesh. GPU runs never load this file.
"""

from __future__ import annotations

import os
import sys

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
    import openrlhf.utils.deepspeed.deepspeed as strategy

    # DeepSpeed would compile this at start-up (half a minute or more) and never use it
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    mesh = strategy.init_device_mesh
    strategy.init_device_mesh = lambda device, *args, **kwargs: mesh("cpu", *args, **kwargs)


def group_adapters() -> None:
    """Makes vLLM in this process group tokens by adapter.

    vLLM's own CPU fallback copies the adapter's weights once per token.
    """
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "rankrl.ppo.cpu_lora.GroupedAdapters")
