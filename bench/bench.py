"""`make bench`: what a seed costs on this machine.

It prints the median and [least, most] of repetitions as a Markdown table. Warm figures are measured
on services of this process, with the code that a sweep runs; cold figures with the command itself.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import ray

from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import Run, plan
from rankrl.sweep.local import prepare_process

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "low_rank.yaml"
PHASES = ("rollout_s", "experience_s", "update_s", "sync_s", "step_s")
RANKS_OF_8 = (1, 2, 4, 8, 8, 16, 32, 32)


def runs_of(*words: str) -> list[Run]:
    return plan(load_experiment(RECIPE, words))


def packed(parallel_runs: int, steps: int, *words: str) -> list[Run]:
    """`parallel_runs` runs of mixed ranks, with one evaluation sample per item at the end."""
    common = (f"steps={steps}", "scale.sampling.eval_samples=1", *words)
    return [runs_of(f"ranks=[{rank}]", f"seeds=[{i}]", *common)[0] for i, rank in enumerate(RANKS_OF_8[:parallel_runs])]


def row(what: str, values: Iterable[float], unit: str) -> None:
    """Prints one row of the table: median and [least, most] of `values`."""
    values = list(values)
    spread = f"[{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else ""
    print(f"| {what} | {statistics.median(values):.3g} {unit} | {spread} |", flush=True)


def lines(directory: Path) -> list[dict[str, Any]]:
    """The lines of every metrics.jsonl under `directory`."""
    return [json.loads(text) for path in directory.rglob("metrics.jsonl") for text in path.read_text().splitlines()]


@contextmanager
def bench_of(runs: list[Run], parallel_runs: int) -> Iterator[Any]:
    """Context with a bench for `runs` whose services are up and whose base is evaluated."""
    from rankrl.sweep.bench import Bench

    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(runs, Path(directory), parallel_runs)
        with redirect_stdout(io.StringIO()):
            bench.base_samples()
        with bench:
            yield bench


def train(bench: Any, runs: list[Run], parallel_runs: int) -> tuple[float, list[dict[str, Any]]]:
    """Trains `runs` from their start. Returns (seconds, metrics of all steps)."""
    from rankrl.sweep.packing import train_all

    with tempfile.TemporaryDirectory() as directory:
        bench.directory, start_s = Path(directory), time.perf_counter()
        with redirect_stdout(io.StringIO()):
            statuses = list(train_all(runs, bench, parallel_runs))
        seconds = time.perf_counter() - start_s
        assert statuses == ["finished"] * len(runs), statuses
        return seconds, lines(bench.directory)


def cold(repetitions: int) -> None:
    """Measures the command in processes of its own.

    Rows: seconds to the first step, and seed-runs per hour with a process for each run of 60 steps.
    """
    first, unpacked = [], []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as directory:
            words = ["ranks=[32]", "seeds=[0]", "steps=60", "parallel_runs=1", "services=per_run"]
            command = [sys.executable, "-m", "rankrl", "sweep", str(RECIPE), *words, "--runs", directory]
            start_s = time.perf_counter()
            sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not lines(Path(directory)) and sweep.poll() is None:
                time.sleep(0.05)
            first.append(time.perf_counter() - start_s)
            assert sweep.wait() == 0
            unpacked.append(time.perf_counter() - start_s)
    row("cold: command to first step", first, "s")
    row("unpacked: a process per run of 60 steps, all included", (3600 / s for s in unpacked), "seed-runs/h")


def sweep_of_12(repetitions: int) -> None:
    """Measures 12 runs of 60 steps as a user starts them, start-up and evaluations included."""
    seconds = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as directory:
            words = ["ranks=[1,2,8,32]", "seeds=[0,1,2]", "steps=60"]
            start_s = time.perf_counter()
            command = [sys.executable, "-m", "rankrl", "sweep", str(RECIPE), *words, "--runs", directory]
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - start_s)
    row("packed: 12 runs x 60 steps, all included", (12 * 3600 / s for s in seconds), "seed-runs/h")


def warm(bench: Any, seed: int) -> float:
    """Seconds to the end of the first step of a run on services that are up."""
    from rankrl.ppo.loop import RunTrainer

    start_s = time.perf_counter()
    run = runs_of("ranks=[8]", f"seeds=[{seed}]")[0]
    trainer = RunTrainer(run, bench.services, bench.prompter, bench.train_items, bench.eval_items)
    trainer.attach()
    trainer.step(0)
    seconds = time.perf_counter() - start_s
    trainer.detach()
    return seconds


def memory_mb(bench: Any) -> dict[str, int]:
    """Resident memory in MiB by process: engine, controller and workers."""
    services = bench.services
    pids = {"engine": ray.get(services.engines[0].ready.remote()), "controller": os.getpid()}
    for process in psutil.Process().children(recursive=True):
        for name in ("PolicyWorker", "ValueWorker"):
            if name in " ".join(process.cmdline()):
                pids[name] = process.pid
    return {name: psutil.Process(pid).memory_info().rss >> 20 for name, pid in pids.items()}


def by_number(bench: Any, repetitions: int, steps: int) -> None:
    """Measures seconds per run and step, and memory, by the number of runs at once."""
    for parallel_runs in (1, 2, 4, 8):
        costs, per_hour, phases = [], [], []
        for _ in range(repetitions):
            seconds, steps_of = train(bench, packed(parallel_runs, steps), parallel_runs)
            costs.append(seconds / (parallel_runs * steps))
            per_hour.append(3600 / (costs[-1] * 60))
            phases += steps_of
        row(f"K = {parallel_runs}: per run and step, evaluation included", costs, "s")
        row(f"K = {parallel_runs}: runs of 60 steps on warm services", per_hour, "seed-runs/h")
        if parallel_runs == 1:
            for phase in PHASES:
                row(f"K = 1: {phase}", (line[phase] for line in phases if line["step"] > 2), "s")
        print(f"| K = {parallel_runs}: memory, MB | {memory_mb(bench)} | |", flush=True)


def growth(bench: Any, steps: int, key: str, values: Iterable[int], *words: str) -> None:
    """Measures seconds per step for each value of one key of the recipe.

    For ranks also seconds and bytes per sync.
    """
    for value in values:
        run = runs_of(
            "ranks=[32]", "seeds=[0]", f"steps={steps}", "scale.sampling.eval_samples=1", *words, f"{key}=[{value}]"
        )
        _, steps_of = train(bench, run, 1)
        later = [line for line in steps_of if line["step"] > 2]
        row(f"{key} {value}: step_s", (line["step_s"] for line in later), "s")
        if key == "ranks":
            row(f"{key} {value}: sync_s", (line["sync_s"] for line in later), "s")
            row(f"{key} {value}: sync_bytes", [later[0]["sync_bytes"]], "bytes")


def random_model(directory: Path, layers: int, hidden: int) -> list[str]:
    """Saves a model of random weights, which hardly ever ends an answer by itself.

    Returns the overrides of the scale for it.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    source = ROOT / "rankrl" / "data" / "nano_model"
    torch.manual_seed(0)
    config = Qwen3Config.from_pretrained(source, num_hidden_layers=layers, hidden_size=hidden, intermediate_size=3 * hidden // 2,
                                         num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, head_dim=64,
                                         layer_types=["full_attention"] * layers)  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    shapes = {
        name: list(m.weight.shape)[::-1] for name, m in model.model.layers[0].named_modules() if name.endswith("_proj")
    }
    return [
        f"scale.model.path={directory}",
        f"scale.model.layers={layers}",
        *(f"scale.model.modules.{name.split('.')[-1]}={shape}" for name, shape in shapes.items()),
        f"scale.model.base_params={sum(p.numel() for p in model.parameters())}",
    ]


def shapes(steps: int) -> None:
    """Measures growth with answer length and model size, on models of random weights."""
    for layers, hidden, answer in ((2, 256, 8), (2, 256, 32), (2, 256, 128), (4, 256, 8), (4, 512, 8)):
        with tempfile.TemporaryDirectory() as directory:
            words = [*random_model(Path(directory), layers, hidden), f"scale.lengths.response_tokens={answer}",
                     "scale.sampling.base_samples=1", "scale.placement.micro_batch=16"]  # fmt: skip
            runs = runs_of("ranks=[8]", "seeds=[0]", f"steps={steps}", "scale.sampling.eval_samples=1", *words)
            with bench_of(runs, 1) as bench:
                _, steps_of = train(bench, runs, 1)
            label = f"{runs[0].scale.model.base_params / 1e6:.1f} M parameters, answers of {answer} tokens"
            for phase in ("rollout_s", "update_s", "step_s"):
                row(f"{label}: {phase}", (line[phase] for line in steps_of if line["step"] > 2), "s")


def warm_services(repetitions: int, steps: int) -> None:
    """Measures runs on services that are up: by number of runs, batch size and rank."""
    with bench_of(runs_of("ranks=[32]", "seeds=[0]", "steps=1"), 8) as bench:
        train(bench, packed(1, 2), 1)  # not measured: the first use of everything is slower
        row(
            "warm: a later run, attached and to the end of its first step",
            (warm(bench, i) for i in range(repetitions)),
            "s",
        )
        by_number(bench, repetitions, steps)
        growth(bench, steps, "batch_sizes", (16, 32, 64, 128))
    with bench_of(runs_of("ranks=[256]", "seeds=[0]", "steps=1"), 1) as bench:
        growth(bench, steps, "ranks", (1, 8, 32, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=["cold", "sweep", "warm", "shapes"], help="which to measure (default: all)"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="PPO steps of each warm measurement")
    args = parser.parse_args()
    memory_gib = psutil.virtual_memory().total / 2**30
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, scale nano\n")
    print("| what | median | [least, most] |\n| --- | --- | --- |", flush=True)
    measure = {
        "cold": lambda: cold(args.repetitions),
        "sweep": lambda: sweep_of_12(args.repetitions),
        "warm": lambda: warm_services(args.repetitions, args.steps),
        "shapes": lambda: shapes(min(args.steps, 6)),
    }
    for i, part in enumerate(args.parts):
        if part in ("warm", "shapes") and not {"warm", "shapes"} & set(args.parts[:i]):
            prepare_process(3)
        measure[part]()


if __name__ == "__main__":
    main()
