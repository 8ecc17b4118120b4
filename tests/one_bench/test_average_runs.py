"""Averaged adapters in the real pipeline: no step changes, and packed and resumed runs agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_runs import check_same, lines, stop_after_a_step, train, trained_alone
from conftest import rankrl, runs_of
from safetensors.torch import load_file

pytestmark = pytest.mark.pipeline

ARMS = {
    "off": {},
    "mean": {"average": {"method": "mean", "share": 1.0, "snapshots": 3}},
    "trajectory": {"average": {"method": "trajectory", "snapshots": 3}},
    "mean_pissa": {"average": {"method": "mean", "share": 1.0, "snapshots": 3}, "init": {"method": "pissa"}},
    "mean_frozen": {"average": {"method": "mean", "share": 1.0, "snapshots": 3}, "trained": "b"},
}
SHORT = ("ranks=[4]", "seeds=[0]", "steps=3", "checkpoint_every=1", "rules.warmup=0", "scale.sampling.eval_samples=1")
RUNS = runs_of("demo", "name=averages", f"arms={json.dumps(ARMS)}", *SHORT)
KEPT = [run for run in RUNS if run.recipe.average.on]


alone = trained_alone(RUNS)


def directory(root: Path, arm: str) -> Path:
    return next(root / run.sweep / run.run_id for run in RUNS if run.arm == arm)


def product(directory: Path, name: str, module: str) -> torch.Tensor:
    """B A of a module of a saved adapter, scale included."""
    config = json.loads((directory / name / "adapter_config.json").read_text())
    tensors = load_file(directory / name / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def averaged(root: Path, arm: str) -> tuple[float, dict[str, torch.Tensor]]:
    result = json.loads((directory(root, arm) / "result.json").read_text())
    return result["average_score"], load_file(directory(root, arm) / "adapter_average" / "adapter_model.safetensors")


def check_averages(left: Path, right: Path) -> None:
    for run in KEPT:
        (ours, tensors), (theirs, others) = averaged(left, run.arm), averaged(right, run.arm)
        assert ours == theirs and tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_training_does_not_notice(alone):
    off, mean, trajectory = (lines(alone, run) for run in RUNS[:3])
    assert off == mean == trajectory
    assert not (directory(alone, "off") / "adapter_average").exists()
    assert "average_score" not in json.loads((directory(alone, "off") / "result.json").read_text())
    for run in KEPT:
        assert 0 <= averaged(alone, run.arm)[0] <= 1


def test_the_average_lies_between(alone):
    """Shorter than the last one: the three snapshots are of a way that leads on."""
    module = "model.layers.0.mlp.down_proj"
    for run in KEPT:
        last, mean = (product(directory(alone, run.arm), name, module) for name in ("adapter", "adapter_average"))
        assert 0 < mean.norm() < 1.05 * last.norm() and not torch.allclose(mean, last)
        assert torch.linalg.matrix_rank(mean) <= (8 if run.arm == "mean_pissa" else 4)
        assert torch.nn.functional.cosine_similarity(mean.flatten(), last.flatten(), 0) > 0.5


def test_packed_and_resumed_runs_end_with_the_same_average(bench, alone):
    packed = train(bench, RUNS, "packed", len(RUNS))
    check_same(packed, alone, RUNS)
    check_averages(packed, alone)
    stop_after_a_step(bench, RUNS, "resumed")
    resumed = train(bench, RUNS, "resumed", len(RUNS))
    check_same(resumed, alone, RUNS)
    check_averages(resumed, alone)


def test_it_is_exported_where_there_is_one(alone, tmp_path):
    done = rankrl("export", str(directory(alone, "mean")), "--average", "--to", str(tmp_path / "served"))
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "served" / "README.md").read_text()
    assert "These are averaged weights** (mean of 3 snapshots)" in card
    done = rankrl("export", str(directory(alone, "off")), "--average", "--to", str(tmp_path / "other"))
    assert done.returncode == 2 and "a finished run with average.method set" in done.stderr
