"""How a scale is put on the GPUs of a node, by the memory estimates that `rankrl plan` prints."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

from rankrl.doctor import usual_run
from rankrl.recipe.cost import DEVICES
from rankrl.recipe.estimate import MOST_PARALLEL, fitting_runs, size
from rankrl.recipe.memory import kv_tokens, memory_bytes
from rankrl.recipe.require import require
from rankrl.recipe.scale import Placement, Scale

DEEPSPEED = ("ds_configs/zero2.json", "ds_configs/zero3.json", "ds_configs/zero3_offload.json")
"""From the fastest to the one that needs the least memory of a GPU."""
MICRO_BATCHES = (8, 4, 2, 1)
"""Numbers of the longest sequences whose tokens a micro-batch may have."""
MOST_TOKENS = {"sdpa": 16384, "eager": 4096}
"""Attention -> most tokens of a row of several sequences: its time and its mask, and with eager its
memory, grow with their square."""
SPARE = 0.9
"""Share of a GPU that the estimates may fill."""
BESIDE_TRAINERS = (0.4, 0.3)
"""Shares of a GPU that an engine may take where trainers are on it as well."""
SEQUENCES = 16
"""Least number of sequences that an engine should hold at once."""


def gpus_here() -> list[float]:
    """Memory in bytes of each GPU that nvidia-smi names; empty without it."""
    if not shutil.which("nvidia-smi"):
        return []
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = said.stdout.split() if said.returncode == 0 else []
    return [float(line) * 2**20 for line in lines if line.isdigit()]


def fitted(scale: Scale, gpus: int, gpu_bytes: float) -> Scale:
    """The scale on `gpus` GPUs of one node, or on the CPU if there are none.

    Of the placements that fit by the estimates it has the fastest. Raises ValueError, one line, if
    none fits.
    """
    if gpus == 0:
        return replace(scale, placement=Placement(device="cpu", micro_batch=8))
    for candidate in candidates(scale, gpus):
        if fits(candidate, gpu_bytes):
            return candidate
    weights = size(scale.model.base_params * scale.model.bytes_per_param)
    allowed = f"more GPUs, or larger ones: weights of {weights} leave too little of {size(gpu_bytes)} each"
    raise ValueError(f"--gpus: got {gpus}, allowed: {allowed} (--gpus N --gpu-memory GB; docs/cost.md)")


def candidates(scale: Scale, gpus: int) -> Iterator[Scale]:
    """The scale in all placements that are considered, the preferred ones first."""
    longest = scale.lengths.prompt_tokens + scale.lengths.response_tokens
    for deepspeed in DEEPSPEED:
        most = MOST_TOKENS.get(scale.model.attention, MICRO_BATCHES[0] * longest)
        for sequences in (n for n in MICRO_BATCHES if n == 1 or n * longest <= most):
            for place in placements(gpus):
                packed = replace(place, micro_batch_tokens=sequences * longest)
                yield replace(scale, deepspeed=deepspeed, placement=packed)


def placements(gpus: int) -> Iterator[Placement]:
    """About half of the GPUs for workers, the others for engines; one GPU is for both."""
    if gpus == 1:
        for share in BESIDE_TRAINERS:
            yield Placement(critic_per_node=0, colocated=True, engine_memory=share)
    for wide in (1, 2, 4, 8):
        if engines := gpus // 2 // wide:
            yield Placement(
                policy_per_node=gpus - engines * wide, critic_per_node=0, engines=engines, tensor_parallel=wide
            )


def fits(scale: Scale, gpu_bytes: float) -> bool:
    """Whether worker and engine of a usual run fit into such GPUs, with room for answers."""
    run, place = usual_run(scale), scale.placement
    parts = memory_bytes(run, run.rank, runs_at_once(scale, gpu_bytes))
    more = gpu_bytes - DEVICES[place.device].memory_bytes
    room = parts["engine"]["KV cache"] + more * place.engine_memory
    length = scale.lengths.prompt_tokens + scale.lengths.response_tokens
    left = gpu_bytes * (SPARE - place.engine_memory * place.colocated)
    return sum(parts["policy worker"].values()) <= left and kv_tokens(scale, room) >= SEQUENCES * length


def runs_at_once(scale: Scale, gpu_bytes: float) -> int:
    """Number of runs at once, of the reference rank, whose adapters fit into a fifth of a GPU."""
    return fitting_runs([usual_run(scale)], MOST_PARALLEL, gpu_bytes / 5)


def check_gpus(gpus: int, gpu_bytes: float) -> None:
    """Raises ValueError, one line, for a number or size of GPUs that is none of a node."""
    require(0 <= gpus <= 8, "--gpus", gpus, "0 to 8, the GPUs of one node", "more nodes: placement.nodes")
    require(gpu_bytes >= 1e9 or not gpus, "--gpu-memory", gpu_bytes / 1e9, "GB of each GPU, at least 1")
