"""`python bench/peers.py`: runs an hour against TRL at its best, from interleaved repetitions.

The same prompts, samples, steps and model on the same machine, start-up included on both sides.
TRL trains by GRPO (no critic, one update a step, no evaluations), in a process per run: one at a
time with all cores, or two at a time with one thread each. A sweep of rankrl is started as a user
starts it, with its evaluations; `group_mean` is TRL's algorithm, `gae` is PPO with a critic and two
updates a step. A TRL run costs the same whichever comes before it, so a few are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from rankrl.data.base_model import local_directory
from rankrl.data.loading import load_items
from rankrl.recipe.load import load_experiment

ROOT = Path(__file__).resolve().parents[1]
TRL = ROOT / ".venv-trl" / "bin" / "python"
RECIPE = ROOT / "recipes" / "low_rank.yaml"
RANKS, STEPS = (1, 2, 8, 32), 60
TRL_RUNS = 4
"""Runs of TRL that are timed in a repetition, one of each rank."""
ARMS = {
    "group_mean": ("advantage.method=group_mean", "updates_per_rollout=1"),
    "gae": (),
}
WHOLE_ROLLOUT = "scale.placement.micro_batch=128"
"""As TRL's. It is faster than nano's 64, but of other last bits than the shipped figures have."""


def rankrl_s(runs: int, arm: str) -> float:
    """Seconds of a sweep of so many runs, from the command to its report."""
    seeds = ",".join(map(str, range(runs // len(RANKS))))
    words = [f"ranks={[*RANKS]}", f"seeds=[{seeds}]", f"steps={STEPS}", WHOLE_ROLLOUT, *ARMS[arm]]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "rankrl", "sweep", str(RECIPE), *words, "--runs", directory]
        return seconds_of([command])


def trl_s(model: Path, rows: Path, at_once: int) -> float:
    """Seconds of one run of TRL where so many run at once, over `TRL_RUNS` of them."""
    threads = str((os.cpu_count() or 1) // at_once)
    commands = [
        [str(TRL), str(ROOT / "bench" / "trl_grpo.py"), str(model), str(rows), str(rank), str(STEPS), threads]
        for rank in RANKS
    ]
    return sum(seconds_of(commands[i : i + at_once]) for i in range(0, TRL_RUNS, at_once)) / TRL_RUNS


def seconds_of(commands: list[list[str]]) -> float:
    """Seconds until all of the commands, started at once, have ended."""
    began_s = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(command, cwd=ROOT, **quiet) for command in commands]
    codes = [process.wait() for process in started]
    assert not any(codes), codes
    return time.perf_counter() - began_s


def row(what: str, seconds: list[float], best: list[float]) -> None:
    """Prints a row: seconds of a run, runs an hour, and the ratio to TRL's best of a repetition."""
    ratios = [trl / own for trl, own in zip(best, seconds, strict=False)]
    spread = f"[{min(seconds):.1f}, {max(seconds):.1f}]"
    middle, ratio = statistics.median(seconds), statistics.median(ratios)
    within = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    print(f"| {what} | {middle:.1f} {spread} | {3600 / middle:.0f} | {ratio:.2f} {within} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--runs", type=int, nargs="+", default=[12, 48], help="sizes of the sweeps, multiples of 4")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    args = parser.parse_args()
    scale = load_experiment(RECIPE, []).scale
    trl: dict[int, list[float]] = {1: [], 2: []}
    ours: dict[tuple[int, str], list[float]] = {(runs, arm): [] for runs in args.runs for arm in args.arms}
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.jsonl"
        items, _ = load_items(scale.data)
        rows.write_text("".join(json.dumps({"input": item.prompt, "label": item.answer}) + "\n" for item in items))
        model = local_directory(scale.model)
        for _ in range(args.repetitions):  # in turn, so that a slow hour is one of all
            for at_once, seconds in trl.items():
                seconds.append(trl_s(model, rows, at_once))
            for (runs, arm), seconds in ours.items():
                seconds.append(rankrl_s(runs, arm) / runs)
    memory_gib = psutil.virtual_memory().total / 2**30
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, scale nano\n")
    print(f"| runs of {STEPS} steps | seconds a run | runs an hour | times TRL's best |\n| --- | --- | --- | --- |")
    best = [min(pair) for pair in zip(*trl.values(), strict=True)]
    for at_once, seconds in trl.items():
        row(f"TRL, {at_once} at a time", seconds, best)
    for (runs, arm), seconds in ours.items():
        row(f"rankrl, {runs} runs, {arm}", seconds, best)


if __name__ == "__main__":
    main()
