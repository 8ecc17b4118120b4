"""Run directories that are written without training.

One sweep has 216 runs with the published means of cells and families; the others are for tests.
`python tests/records.py DIR [SEEDS]` writes synthetic216, small, ablation and broken below DIR
(with SEEDS, synthetic216 alone). Cells that were not published are filled in so that the family
means are right; they are no results.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import Run, plan
from rankrl.report.ledger import write_plan
from rankrl.report.result import Result

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RANKS, BATCHES, BASE_SCORE = (1, 2, 4, 8, 16, 32, 64, 128, 256), (16, 32, 64, 128), 0.3
BATCH_MEANS = (0.0645, 0.0683, 0.0747, 0.0760)
RANK_MEANS = {1: 0.001725, 16: 0.1012, 32: 0.1019, 256: 0.0534}
CELL_MEANS = {
    (1, 16): 0.0154,
    (1, 32): 0.0112,
    (1, 64): -0.0012,
    (1, 128): -0.0185,
    (32, 16): 0.0855,
    (32, 128): 0.1204,
}
CELL_SDS = {(32, 16): 0.0073, (1, 16): 0.008, (1, 64): 0.03, (1, 128): 0.0380, (2, 128): 0.06, (256, 128): 0.06}
NEGATIVE = {(1, 32): 1, (1, 64): 3, (1, 128): 4, (2, 128): 1, (256, 128): 1}
TOKENS = {16: 48e6, 32: 88e6, 64: 160e6, 128: 285e6}
"""Batch size -> tokens of a run. The first and the last were published."""


@dataclass(frozen=True)
class Grown:
    """The outcome of a run that is written."""

    gain: float
    tokens: int
    wall_s: float


def cell_means() -> dict[tuple[int, int], float]:
    """(rank, batch size) -> mean gain: the published ones and the smoothest ones that fit."""
    cells = [(r, b) for r in RANKS for b in BATCHES]
    rest = (sum(BATCH_MEANS) / 4 * 9 - sum(RANK_MEANS.values())) / 5
    ranks = np.array([RANK_MEANS.get(r, rest) for r in RANKS])
    first = np.add.outer(ranks, np.array(BATCH_MEANS) - np.mean(BATCH_MEANS)).ravel()
    rows = [[r == rank for r, _ in cells] for rank in RANK_MEANS]
    rows += [[b == batch for _, b in cells] for batch in BATCHES]
    rows += [[cell == fixed for cell in cells] for fixed in CELL_MEANS]
    asked = [4 * m for m in RANK_MEANS.values()] + [9 * m for m in BATCH_MEANS] + list(CELL_MEANS.values())
    constraints = np.array(rows, dtype=float)
    change = np.linalg.pinv(constraints) @ (np.array(asked) - constraints @ first)
    return dict(zip(cells, (first + change).tolist(), strict=True))


def cell_gains(mean: float, sd: float, negative: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` gains with exactly this mean and sd (ddof 1), exactly `negative` of them below 0."""
    for _ in range(20_000):
        z = rng.standard_normal(n)
        gains = mean + sd * (z - z.mean()) / z.std(ddof=1)
        if (gains < 0).sum() == negative:
            return gains
    raise ValueError(f"sd: got {sd}, allowed: one that lets {negative} of {n} gains around {mean} be negative")


def published(runs: list[Run], seed: int = 0) -> dict[str, Grown]:
    """Run id -> outcome, for runs on the grid of the published sweep."""
    rng, means, cells = np.random.default_rng(seed), cell_means(), {}
    for run in runs:
        cells.setdefault((run.rank, run.batch_size), []).append(run)
    grown = {}
    for (rank, batch), members in cells.items():
        negative = round(NEGATIVE.get((rank, batch), 0) * len(members) / 6)
        sd = CELL_SDS.get((rank, batch), 0.012)
        gains = cell_gains(means[rank, batch], sd, negative, len(members), rng) if len(members) <= 6 else None
        gains = rng.normal(means[rank, batch], sd, len(members)) if gains is None else gains
        spread = rng.normal(0, 0.01, len(members))
        for run, gain, more in zip(members, gains, spread - spread.mean(), strict=True):
            more += 0.01 * (RANKS.index(rank) - 4)  # does not change the mean over ranks
            wall_s = (2000 + 25 * batch + run.trainable_params * 2e-6) * (1 + more)
            grown[run.run_id] = Grown(float(gain), round(TOKENS[batch] * (1 + more)), wall_s)
    return grown


def write_run(directory: Path, run: Run, grown: Grown, items: int = 40, metrics: bytes | None = None) -> Path:
    """Writes the files of a finished run; evals.parquet only if `items` is not 0."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {**run.resolved(), "versions": {"rankrl": "0", "git_commit": "synthetic"}, "data_revision": "synthetic"}
    (directory / "run.yaml").write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))
    (directory / "metrics.jsonl").write_bytes(metrics or metric_lines(run, grown))
    if items:
        evaluations(run, grown, items).to_parquet(directory / "evals.parquet")
    (directory / "result.json").write_text(json.dumps(result(run, grown), indent=1) + "\n")
    return directory


def result(run: Run, grown: Grown, status: str = "finished") -> dict:
    final = None if status == "failed" else BASE_SCORE + grown.gain
    scores = (BASE_SCORE, final, None if final is None else max(final, BASE_SCORE))
    spent = (grown.tokens, run.recipe.steps, grown.wall_s, run.trainable_params)
    return Result.of(run, status, *scores, *spent).as_dict()


def record(status: str, **more) -> dict:
    """The smallest valid content of a result.json."""
    names = {"run_id": "r1-b16-s0", "arm": "", "rank": 1, "batch_size": 16, "seed": 0, "status": status}
    scores = {"base_score": 0.25, "final_score": 0.5, "best_score": 0.5, "gain": 0.25}
    return names | scores | {"tokens_total": 1, "steps": 1, "wall_s": 1, "trainable_params": 1, "base_params": 1} | more


def metric_lines(run: Run, grown: Grown) -> bytes:
    rng, steps = np.random.default_rng(run.seed * 1009 + run.rank * 31 + run.batch_size), run.recipe.steps
    done = np.arange(1, steps + 1) / steps
    accuracy = np.clip(BASE_SCORE + grown.gain * done**0.5 + rng.normal(0, 0.02, steps), 0, 1)
    kl = (0.02 + 0.5 / run.rank) * done * rng.lognormal(0, 0.1, steps)
    table = pd.DataFrame({"step": np.arange(1, steps + 1), "tokens_total": (grown.tokens * done).astype(int)})
    table["reward_mean"], table["accuracy"] = accuracy + 0.1, accuracy
    table["kl_ref"], table["kl_step"], table["kl_coef"] = kl, kl / 20, 1e-3
    table["clip_low"], table["clip_high"], table["clip_frac"] = 0.2, 0.28, rng.uniform(0, 0.02, steps)
    table["entropy"], table["lr"] = 0.9 - 0.4 * done, run["lr"]
    table["grad_norm"] = rng.lognormal(-1, 0.2, steps) / run.rank**0.5
    table["response_tokens_mean"], table["truncated_frac"] = 900 - 200 * done, rng.uniform(0, 0.1, steps)
    table["sync_bytes"], table["sync_gap_nats"] = 4 * run.trainable_params, rng.uniform(0, 0.002, steps)
    for name, share in (
        ("rollout_s", 0.6),
        ("experience_s", 0.1),
        ("update_s", 0.28),
        ("sync_s", 0.02),
        ("step_s", 1.0),
    ):
        table[name] = share * grown.wall_s / steps
    return table.to_json(orient="records", lines=True).encode()


def evaluations(run: Run, grown: Grown, items: int, samples: int = 4) -> pd.DataFrame:
    """Samples of the base and of the last step, as many correct as the score says.

    An item is equally hard in all runs.
    """
    ease = np.random.default_rng(7).beta(1.2, 2.4, items)
    tables = []
    for step, shift, seed in ((0, 0.0, 5), (run.recipe.steps, grown.gain, [run.seed, run.rank, run.batch_size])):
        chance = np.clip(ease + BASE_SCORE - ease.mean() + shift, 0, 1)
        luck = (np.random.default_rng(seed).random((items, samples)) - chance[:, None]).ravel()
        correct = np.zeros(items * samples, dtype=bool)
        correct[np.argsort(luck)[: round((BASE_SCORE + shift) * items * samples)]] = True
        names = [f"{'sums' if i % 2 else 'chains'}-{i}" for i in range(items)]
        table = pd.DataFrame({"step": step, "item_id": np.repeat(names, samples)})
        table["source"] = table["item_id"].str.partition("-")[0]
        table["sample"], table["correct"] = np.tile(np.arange(samples), items), correct
        table["verdict"] = np.where(table["correct"], "correct", "wrong")
        table["response"] = ("\\boxed{" + table["item_id"] + "}").where(table["sample"] == 0)
        tables.append(table.assign(boxed=True, response_tokens=500))
    return pd.concat(tables, ignore_index=True)


def grid(name: str, recipe: str = "low_rank", *overrides: str) -> list[Run]:
    return plan(load_experiment(RECIPES / f"{recipe}.yaml", [f"name={name}", *overrides]))


def write_all(root: Path, runs: list[Run], grown: dict[str, Grown], items: int = 40, own_metrics: int = 10**9) -> Path:
    """Writes a finished sweep.

    Only the first `own_metrics` runs have metrics of their own. The others are hard links to them:
    much to read, but little to store.
    """
    write_plan(root, runs)
    for i, run in enumerate(runs):
        directory, lines = root / run.run_id, root / runs[i % own_metrics].run_id / "metrics.jsonl"
        write_run(directory, run, grown[run.run_id], items, b"\n" if i >= own_metrics else None)
        if i >= own_metrics:
            (directory / "metrics.jsonl").unlink()
            (directory / "metrics.jsonl").hardlink_to(lines)
    return root


def synthetic216(to: Path, steps: int = 500, seeds: int = 6, items: int = 40, own_metrics: int = 10**9) -> Path:
    """Writes the published sweep: 9 ranks, 4 batch sizes, 6 seeds."""
    grids = (f"ranks={list(RANKS)}", f"batch_sizes={list(BATCHES)}", f"seeds={list(range(seeds))}", f"steps={steps}")
    runs = grid("synthetic216", "low_rank", "scale=qwen3-8b", *grids)
    return write_all(to / "synthetic216", runs, published(runs), items, own_metrics)


def drawn(runs: list[Run], mean: dict[str, float], sd: float, seed: int = 1) -> dict[str, Grown]:
    """Run id -> random outcome around the mean gain of its arm. A seed shifts all arms alike."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(seed).normal(0, sd, 1000)
    return {
        run.run_id: Grown(
            float(mean[run.arm] + 0.01 * np.log2(run.rank) + shared[run.seed] + rng.normal(0, sd / 2)),
            int(2e5 * run.batch_size * rng.uniform(0.9, 1.1)),
            float(20 * rng.uniform(0.9, 1.1)),
        )
        for run in runs
    }


def axes_sweep(to: Path, means: dict[str, float], *overrides: str, sd: float = 0.02) -> Path:
    """Writes a sweep over learning rates and exponents of alpha: arm -> mean gain at rank 1."""
    axes = "axes={rules.lr.value: [1e-3, 5e-4, 2e-3], rules.alpha.exponent: [0, 0.5]}"
    runs = grid("axes", "demo", axes, "rules.alpha.rule=power", "ranks=[1,8]", *overrides)
    return write_all(to / "axes", runs, drawn(runs, means, sd))


def small(to: Path) -> Path:
    """Writes the sweep of the demo: three ranks, two seeds, 30 steps at nano."""
    runs = grid("small", "demo")
    return write_all(to / "small", runs, drawn(runs, {"": 0.2}, 0.02))


def ablation(to: Path) -> Path:
    """Writes a sweep with the arms of recipes/ablate_init.yaml at nano."""
    runs = grid("ablation", "ablate_init", "steps=60")
    arms = sorted({run.arm for run in runs})
    return write_all(to / "ablation", runs, drawn(runs, {arm: 0.1 + 0.02 * i for i, arm in enumerate(arms)}, 0.02))


def broken(to: Path) -> Path:
    """Writes a damaged sweep: each kind of damage is in a run of its own.

    DAMAGE and the comments say which problem the report must name.
    """
    runs = grid("broken", "demo", "seeds=[0,1,2,3,4,5]")
    grown, root = drawn(runs, {"": 0.1}, 0.05), to / "broken"
    write_all(root, runs, grown)
    found = by_id(runs)
    for run_id, text in DAMAGE.items():
        (root / run_id / "result.json").write_bytes(text)
    for run_id, status in (("r8-b16-s4", "failed"), ("r8-b16-s5", "diverged")):
        content = result(found[run_id], grown[run_id], status) | {"error": "<b>CUDA</b> error: out of memory"}
        (root / run_id / "result.json").write_text(json.dumps(content))
    (root / "r32-b16-s0" / "result.json").unlink()  # partial
    for file in (root / "r32-b16-s1").iterdir():  # missing
        file.unlink()
    (root / "r32-b16-s1").rmdir()
    (root / "r32-b16-s2" / "metrics.jsonl").write_bytes(b"\x00\xff" * 500)
    (root / "r32-b16-s3" / "evals.parquet").write_bytes(b"PAR1 no parquet")
    (root / "r32-b16-s4" / "run.yaml").write_text("{" * 50_000)
    copy = root / "r32-b16-s5 (copy)"
    copy.mkdir()
    for name in ("run.yaml", "result.json"):
        (copy / name).write_bytes((root / "r32-b16-s5" / name).read_bytes())
    other = grid("other", "baseline", "seeds=[77]", "ranks=[2]", "batch_sizes=[16]", "steps=30")[0]
    write_run(root / other.run_id, other, Grown(0.3, 1000, 1.0))  # foreign
    return root


WHOLE = (
    '{"run_id": "r1-b16-s%d", "arm": "", "rank": %s, "batch_size": 16, "seed": %d, "status": "finished", "base_score": 0.3, '
    '"final_score": %s, "best_score": 0.4, "gain": %s, "tokens_total": 1, "steps": 30, "wall_s": 1, "trainable_params": 1, '
    '"base_params": 1}'
)
DAMAGE = {
    "r1-b16-s0": b'{"run_id": "r1-b16-s0", "gain": 0.1',
    "r1-b16-s1": b"[" * 200_000,
    "r1-b16-s2": b"\x00\xff\xfe",
    "r1-b16-s3": (WHOLE % (3, 1, 3, "NaN", 0.1)).encode(),
    "r1-b16-s4": (WHOLE % (4, '"one"', 4, 0.4, 0.1)).encode(),
    "r1-b16-s5": (WHOLE % (5, 1, 5, 0.4, 0.4)).encode(),
}


def by_id(runs: list[Run]) -> dict[str, Run]:
    return {run.run_id: run for run in runs}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        synthetic216(target, seeds=int(sys.argv[2]), items=20, own_metrics=20)
    else:
        for write in (synthetic216, small, ablation, broken):
            print(write(target))
