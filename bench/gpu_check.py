"""Checks of what only a GPU shows; prints a Markdown table.

    python bench/gpu_check.py [parts ...]      # parts: inits steps pipeline memory

Each part runs in a process of its own, with a time limit, so that one failure loses nothing else.
`inits` and `memory` need no vLLM. `memory` builds a model of random weights of Qwen3-8B's shape (16
GB on disk) and trains on it; --small takes the embedded model's shape instead, to try this file on
a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMITS_S = {"inits": 120, "steps": 150, "pipeline": 300, "memory": 240}
ZERO3 = f"scale.deepspeed={ROOT / 'ds_configs' / 'zero3.json'}"
ON_GPU = ("scale.model.dtype=bfloat16", "scale.placement.device=h100")
COLOCATED = (*ON_GPU, "scale.placement.colocated=true", "scale.placement.engine_memory=0.3")
QWEN = ("scale=qwen3-8b", "scale.model.attention=sdpa", "scale.placement.policy_per_node=1", "scale.placement.critic_per_node=0",
        "scale.placement.engines=1", "scale.placement.colocated=true", "scale.placement.engine_memory=0.3")  # fmt: skip


def row(what: str, value: Any) -> None:
    print(f"| {what} | {value} |", flush=True)


def number(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3g} [{ordered[0]:.3g}, {ordered[-1]:.3g}]"


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def device() -> str:
    return "cuda" if on_gpu() else "cpu"


def runs_of(recipe: str, *words: str) -> list[Any]:
    from rankrl.recipe.load import load_experiment
    from rankrl.recipe.plan import plan

    return plan(load_experiment(ROOT / "recipes" / f"{recipe}.yaml", words))


def policy_worker(run: Any, path: str) -> Any:
    """OpenRLHF's policy worker in this process, without Ray, vLLM or a value worker."""
    if not on_gpu():
        from rankrl.ppo import cpu

        cpu.install()
    from rankrl.ppo.arguments import arguments
    from rankrl.ppo.policy import PolicyWorker
    from rankrl.ppo.strategy import AdapterStrategy
    from rankrl.recipe.deepspeed import deepspeed_config

    model = run.scale.model
    strategy = AdapterStrategy(arguments(run, path), deepspeed_config(run.scale), run.scale)
    worker = PolicyWorker(1, 0, "127.0.0.1", None)
    worker.init_model_from_pretrained(strategy, path, model.modules, model.layers)
    return worker


def attach(worker: Any, run: Any, rank: int) -> str:
    """Adds an adapter that takes an optimizer step at every micro-batch. Returns its name."""
    from rankrl.ppo.workers import AdapterSpec
    from rankrl.recipe.rank_table import uniform

    name = f"r{rank}"
    table = uniform(worker.host.shapes, rank, lambda _: run["alpha"])
    worker.attach(AdapterSpec(name, worker.strategy.args, table, 0, 1.0, 1000, 1))
    worker.runs[name].optimizer.accumulate = 1
    return name


def experience(samples: int, prompt: int, answer: int, vocabulary: int) -> Any:
    """A batch of random tokens and advantages, in the form that the update takes."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, vocabulary, (samples, prompt + answer), generator=draw)
    actions = torch.ones(samples, answer, dtype=torch.bool)
    logprobs = torch.full((samples, answer), -1.0)
    made = Experience(
        sequences=tokens,
        attention_mask=torch.ones_like(tokens),
        action_mask=actions,
        action_log_probs=logprobs,
        base_action_log_probs=logprobs,
        rollout_log_probs=logprobs,
        advantages=torch.randn(samples, answer, generator=draw),
    )
    made.to_device(device())
    return made


def train(worker: Any, name: str, batch: Any, steps: int) -> tuple[list[float], list[float]]:
    """Makes `steps` optimizer steps. Returns (seconds, gradient norms), one of each per step."""
    import torch

    seconds, norms = [], []
    with worker.activate(name) as run:
        old = worker.actor(batch.sequences, batch.action_mask, batch.attention_mask).detach()
        batch.action_log_probs = batch.rollout_log_probs = old
        for step in range(steps):
            torch.cuda.synchronize()
            start_s = time.perf_counter()
            run.trainer.training_step(batch, 0.0, step)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start_s)
            norms.append(run.optimizer.grad_norm)
    return seconds, norms


def inits() -> None:
    """Compares starts measured on this device with those measured on the CPU."""
    import torch

    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / "cpu", Path(directory) / "here"]
        for path, hidden in zip(paths, ({"CUDA_VISIBLE_DEVICES": ""}, {}), strict=True):
            subprocess.run(
                [sys.executable, __file__, "--child", "starts", "--to", path], env={**os.environ, **hidden}, check=True
            )
        on_cpu, here = (torch.load(path, weights_only=True) for path in paths)
    for name, rows in on_cpu.items():
        gaps = [(signed(rows[m]) - signed(here[name][m])).abs().max().item() for m in rows]
        norm = max(r.abs().max().item() for r in rows.values())
        row(
            f"start {name}: largest difference between CPU and {device()}, of entries up to {norm:.2g}",
            f"{max(gaps):.2g}",
        )


def signed(rows: Any) -> Any:
    """The rows with their largest entry made positive, as singular vectors have no sign."""
    return rows * rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()


def starts(to: Path) -> None:
    """Saves to `to` the first rows of adapters (fp32) of every method that needs the base."""
    import torch

    from rankrl.adapter.watch import Batch, Samples
    from rankrl.recipe.architecture import EMBEDDED
    from rankrl.recipe.init_section import Init

    path = str(EMBEDDED["embedded:nano"])
    worker = policy_worker(runs_of("demo", "ranks=[8]", "seeds=[0]")[0], path)
    made = experience(64, 8, 8, 60)
    advantage_N = 2.0 * (made.sequences[:, 8].cpu() % 2) - 1  # the signal to find: odd first answers are good
    group_N = torch.arange(64) // 8
    on_host = lambda t: t.cpu()  # noqa: E731
    batch = Batch(on_host(made.sequences), on_host(made.attention_mask), on_host(made.action_mask), torch.arange(64), group_N % 2,
                  advantage_N, torch.ones(64))  # fmt: skip
    samples = Samples(advantage_N, group_N, group_N % 2, torch.full((64,), 8))
    found = {}
    for init in (
        Init("pissa"),
        Init("rlpo"),
        Init("eva"),
        Init("pg_subspace"),
        Init("pg_subspace", fisher=True, off_principal=4),
    ):
        start = worker.measure(init, 8, 0, [batch], samples)
        found[f"{init.method}{' off principal' * bool(init.off_principal)}"] = {
            m: r.float().cpu() for m, r in start.rows.items()
        }
    torch.save(found, to)


def steps() -> None:
    """Measures the trainer alone on the embedded model, each setting in a process of its own.

    The settings are ZeRO stages, checkpointing, shared prefixes and precision.
    """
    for label, words in {
        "ZeRO-2": (),
        "ZeRO-3": (ZERO3,),
        "ZeRO-3, checkpointing": (ZERO3, "scale.model.gradient_checkpointing=true"),
        "without shared prefixes": ("scale.model.share_prefixes=false",),
        "ZeRO-2, fp32": ("scale.model.dtype=float32",),
    }.items():  # fmt: skip
        subprocess.run(
            [sys.executable, __file__, "--child", "step", "--label", label, *(["--words", *words] if words else [])],
            check=False,
        )


def step(label: str, words: list[str]) -> None:
    import torch

    from rankrl.recipe.architecture import EMBEDDED

    run = runs_of("demo", "ranks=[8]", "seeds=[0]", "rules.warmup=0", *(ON_GPU if on_gpu() else ()), *words)[0]
    worker = policy_worker(run, str(EMBEDDED["embedded:nano"]))
    name = attach(worker, run, 8)
    kinds = {(p.dtype, p.requires_grad) for p in worker.host.model.parameters()}
    seconds, norms = train(worker, name, experience(64, 8, 8, 60), 6)
    trained = sorted(str(dtype) for dtype, learns in kinds if learns)
    moved = max(
        p.abs().max().item() for key, p in worker.parameters_of(worker.runs[name]).items() if key.endswith("lora_B")
    )
    row(
        f"{label}: adapter in {trained}, base in {run.scale.model.dtype}; gradient norms",
        " ".join(f"{n:.6f}" for n in norms[:3]),
    )
    row(f"{label}: seconds of an update of 64 x 16 tokens; |B| after 6", f"{number(seconds[2:])}; {moved:.2g}")
    assert trained == ["torch.float32"] and torch.isfinite(torch.tensor(norms)).all()


def random_weights(config_file: Path, to: Path) -> None:
    """Saves a model with the shape of `config_file` and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    to.mkdir()
    shutil.copy(config_file, to / "config.json")
    start_s = time.perf_counter()
    with torch.device(device()), no_init_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(to), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1) if "norm" in name else p.normal_(0, 0.02)
    model.save_pretrained(to)
    row("random weights built and saved, s", f"{time.perf_counter() - start_s:.0f}")


def memory(small: bool) -> None:
    """Measures peak memory and seconds of updates at ranks 1 and 32.

    The estimate of `rankrl plan` is printed beside them.
    """
    home = next(d for d in ("/dev/shm", tempfile.gettempdir()) if small or shutil.disk_usage(d).free > 20e9)
    with tempfile.TemporaryDirectory(dir=home) as directory:
        for part in ("build", "update"):
            words = ["--to", f"{directory}/model"] + ["--small"] * small
            subprocess.run([sys.executable, __file__, "--child", part, *words], check=True)


def shape(small: bool) -> tuple[Path, tuple[str, ...], list[int], int]:
    """(config.json, overrides of the scale, tokens per sample to try, vocabulary size)."""
    if small:
        return ROOT / "rankrl/data/nano_model/config.json", ("scale.model.gradient_checkpointing=true",), [16, 24], 60
    return ROOT / "rankrl/scales/models/Qwen/Qwen3-8B.json", QWEN, [1024, 2048, 4096, 9216], 151936


def build(to: Path, small: bool) -> None:
    random_weights(shape(small)[0], to)


def update(path: Path, small: bool) -> None:
    import torch

    from rankrl.recipe.memory import memory_bytes

    _, words, lengths, vocabulary = shape(small)
    common = (f"scale.model.path={path}", ZERO3, "seeds=[0]", "ranks=[32]", "scale.placement.micro_batch=1")
    run, start_s = runs_of("demo", *words, *common)[0], time.perf_counter()
    worker = policy_worker(run, str(path))
    row("base loaded, s", f"{time.perf_counter() - start_s:.0f}")
    names = [attach(worker, run, rank) for rank in (1, 32)]
    for tokens in lengths:
        asked = runs_of(
            "demo", *words, *common, "scale.lengths.prompt_tokens=8", f"scale.lengths.response_tokens={tokens - 8}"
        )[0]
        for name in names:
            rank = int(name[1:])
            torch.cuda.reset_peak_memory_stats() if on_gpu() else None
            seconds, norms = train(worker, name, experience(1, 8, tokens - 8, vocabulary), 3)
            peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0
            parts = {key: f"{value / 1e9:.2f}" for key, value in memory_bytes(asked, rank, 1)["policy worker"].items()}
            row(f"1 x {tokens} tokens, rank {rank}: s an update; peak GB; estimated GB; gradient norm",
                f"{number(seconds[1:])}; {peak:.2f}; {parts}; {norms[-1]:.3g}")  # fmt: skip


def curves(directory: Path) -> dict[str, list[dict[str, Any]]]:
    paths = sorted(directory.rglob("metrics.jsonl"))
    return {path.parent.name: [json.loads(text) for text in path.read_text().splitlines()] for path in paths}


def same(one: dict[str, Any], two: dict[str, Any]) -> str:
    """Where two results of the same runs first differ, bit for bit, except for seconds."""
    strip = lambda lines: [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]  # noqa: E731
    found = []
    for run_id, lines in one.items():
        parted = [i + 1 for i, (a, b) in enumerate(zip(strip(lines), strip(two[run_id]), strict=True)) if a != b]
        apart = max(abs(a["reward_mean"] - b["reward_mean"]) for a, b in zip(lines, two[run_id], strict=True))
        found.append(f"{run_id}: " + (f"part at step {parted[0]}, rewards by up to {apart:.3g}" if parted else "equal"))
    return "; ".join(found)


def pipeline(words: list[str]) -> None:
    """Measures the whole loop on warm services: two runs one by one, again, and together."""
    from rankrl.sweep.local import prepare_process

    runs = runs_of(
        "demo", "ranks=[1,8]", "seeds=[0]", "steps=10", *(COLOCATED if Path("/dev/nvidiactl").exists() else ()), *words
    )
    start_s = time.perf_counter()
    prepare_process(runs[0].scale.placement.gpus)
    from rankrl.sweep.bench import Bench
    from rankrl.sweep.packing import train_all

    with tempfile.TemporaryDirectory() as directory, Bench(runs, Path(directory), len(runs)) as bench:
        row("services up, s", f"{time.perf_counter() - start_s:.0f}")
        bench.base_samples()
        found = {}
        for label, parallel_runs in (("alone", 1), ("again", 1), ("together", 2)):
            bench.directory, start_s = Path(directory) / label, time.perf_counter()
            statuses = list(train_all(runs, bench, parallel_runs))
            seconds = time.perf_counter() - start_s
            found[label] = curves(bench.directory)
            show(label, statuses, seconds, found[label])
        row("again", same(found["alone"], found["again"]))
        row("together", same(found["alone"], found["together"]))


def show(label: str, statuses: list[str], seconds: float, found: dict[str, list[dict[str, Any]]]) -> None:
    steps = [line for lines in found.values() for line in lines if line["step"] > 2]
    row(f"{label}: {' '.join(statuses)}, s in all", f"{seconds:.1f}")
    for phase in ("rollout_s", "experience_s", "update_s", "sync_s", "step_s", "sync_gap_nats"):
        row(f"{label}: {phase}", number(line[phase] for line in steps))
    for run_id, lines in found.items():
        row(
            f"{label}: reward of {run_id}, first and last step",
            f"{lines[0]['reward_mean']:.4g}, {lines[-1]['reward_mean']:.4g}",
        )


def about() -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    row("device", torch.cuda.get_device_name() if on_gpu() else platform.processor() or platform.machine())
    for name in ("torch", "triton", "vllm", "deepspeed", "openrlhf", "ray", "transformers", "peft", "flash-attn"):
        try:
            row(name, version(name))
        except PackageNotFoundError:
            row(name, "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(LIMITS_S))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--limit", type=float, help="seconds of a part (default: by part)")
    parser.add_argument("--words", nargs="*", default=[], help="more words for the recipe")
    for name in ("--child", "--label"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    child = {
        "inits": inits, "starts": lambda: starts(args.to), "steps": steps, "step": lambda: step(args.label, args.words),
        "pipeline": lambda: pipeline(args.words), "memory": lambda: memory(args.small),
        "build": lambda: build(args.to, args.small), "update": lambda: update(args.to, args.small),
    }  # fmt: skip
    if args.child:
        return child[args.child]()
    print("| what | found |\n| --- | --- |", flush=True)
    about()
    for part in args.parts:
        words = ["--small"] * args.small + (["--words", *args.words] if args.words else [])
        try:
            code = subprocess.run(
                [sys.executable, __file__, "--child", part, *words], timeout=args.limit or LIMITS_S[part]
            ).returncode
            row(f"**{part}**", "done" if code == 0 else f"exit code {code}")
        except subprocess.TimeoutExpired as error:
            row(f"**{part}**", f"over {error.timeout:g} s")


if __name__ == "__main__":
    main()
