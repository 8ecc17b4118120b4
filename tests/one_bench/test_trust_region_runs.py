"""The trust region in the real pipeline: what it logs and does, alone, packed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_runs import check_same, lines, stop_after_a_step, train, trained_alone
from conftest import runs_of

pytestmark = pytest.mark.pipeline

ARMS = {
    "off": {},
    "small": {"trust_region": {"target": 1e-12}},
    "large": {"trust_region": {"target": 10.0, "high": 1.6}},
    "reference": {"trust_region": {"target": "reference"}},
    "spectral": {"optimizer": {"method": "spectral"}, "rules": {"lr": 0.1}, "trust_region": {"target": 1e-12}},
}
SHORT = ("ranks=[8]", "seeds=[0]", "steps=4", "checkpoint_every=1", "rules.warmup=0", "scale.sampling.eval_samples=1")
RUNS = runs_of("demo", "name=regions", f"arms={json.dumps(ARMS)}", *SHORT)
RATE = {run.arm: run["lr"] for run in RUNS}


alone = trained_alone(RUNS)


def column(root: Path, arm: str, name: str) -> list[float]:
    run = next(run for run in RUNS if run.arm == arm)
    return [line[name] for line in lines(root, run)]


def test_the_rate_follows_the_kl_of_the_step_before(alone):
    assert "lr_factor" not in lines(alone, RUNS[0])[0]
    shrunk, grown = [1.0, 2 / 3, 4 / 9, 8 / 27], [1.0, 1.5, 1.6, 1.6]
    for arm, factors in {"small": shrunk, "spectral": shrunk, "large": grown}.items():
        assert column(alone, arm, "lr_factor") == pytest.approx(factors)
        assert column(alone, arm, "lr") == pytest.approx([RATE[arm] * factor for factor in factors])
    assert column(alone, "small", "kl_target") == [1e-12] * 4 and column(alone, "large", "kl_target") == [10.0] * 4
    kls, targets, factors = (column(alone, "reference", name) for name in ("kl_step", "kl_target", "lr_factor"))
    expected = [1.0]
    for kl, target in zip(kls[1:], targets[1:], strict=True):
        expected.append(expected[-1] * min(max((target / kl) ** 0.5, 2 / 3), 1.5))
    assert factors == pytest.approx(expected) and factors[1] != 1.0


def test_the_first_step_is_that_without_one_and_the_second_another(alone):
    """A line has the KL of the update before, so the second update is the first to differ."""
    of = {arm: column(alone, arm, "delta_norm") for arm in ("off", "small", "large")}
    assert of["off"][0] == of["small"][0] == of["large"][0]
    assert of["small"][1] < of["off"][1] < of["large"][1]


def test_resumed_runs_equal_the_others(bench, alone):
    stopped = stop_after_a_step(bench, RUNS, "resumed")
    for run in RUNS:
        state = torch.load(stopped / run.sweep / run.run_id / "checkpoint" / "state.pt", weights_only=True)
        assert state["lr_factor"] == 1.0 and state["policy"][0]["scheduler"].get("factor", 1.0) == 1.0
    check_same(train(bench, RUNS, "resumed", len(RUNS)), alone, RUNS)


def test_runs_resumed_with_another_factor_equal_the_others(bench, alone):
    """Stopped once more, after the step that moved it."""
    stop_after_a_step(bench, RUNS, "twice")
    for run in RUNS:
        (bench.directory / "twice" / run.sweep / run.run_id / "STOP").touch()
    stopped = train(bench, RUNS, "twice", 1)
    for run in RUNS:
        state = torch.load(stopped / run.sweep / run.run_id / "checkpoint" / "state.pt", weights_only=True)
        assert state["step"] == 2 and (state["lr_factor"] != 1.0) is run.recipe.trust_region.on
    check_same(train(bench, RUNS, "twice", 1), alone, RUNS)


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, RUNS, "packed", len(RUNS)), alone, RUNS)
