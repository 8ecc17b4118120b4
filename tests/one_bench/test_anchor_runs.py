"""The KL anchor in the real pipeline: what each arm does, alone, packed and resumed."""

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
    "zero": {"rules": {"kl": 0.0}},
    "ema": {"kl_anchor": {"reference": "ema", "rate": 0.5}},
    "ema_last": {"kl_anchor": {"reference": "ema", "rate": 1.0}},
    "ema_frozen": {"kl_anchor": {"reference": "ema", "rate": 0.5}, "trained": "b", "init": {"method": "pissa"}},
    "k2": {"kl_anchor": {"place": "loss"}},
    "k3": {"kl_anchor": {"place": "loss", "estimator": "k3"}},
    "ema_k2": {"kl_anchor": {"reference": "ema", "rate": 0.5, "place": "loss"}, "advantage": {"method": "group_mean"}},
}
SHORT = ("ranks=[8]", "seeds=[0]", "steps=3", "checkpoint_every=1", "rules.warmup=0", "scale.sampling.eval_samples=1")
RUNS = runs_of("demo", "name=anchors", f"arms={json.dumps(ARMS)}", "rules.kl=0.3", *SHORT)


alone = trained_alone(RUNS)


def columns(root: Path, name: str) -> dict[str, list[float]]:
    """Values of a metric at each step, by arm; those without it left out."""
    found = {run.arm: [line.get(name) for line in lines(root, run)] for run in RUNS}
    return {arm: values for arm, values in found.items() if None not in values}


def test_the_anchor_follows_the_policy(alone):
    anchored, base = columns(alone, "kl_anchor"), columns(alone, "kl_ref")
    assert {*anchored} == {"ema", "ema_last", "ema_frozen", "ema_k2"}
    assert all(abs(values[0]) < 1e-5 for values in (*anchored.values(), *base.values()))  # the start is the base
    assert anchored["ema_last"] == [0, 0, 0]  # the policy that sampled
    for arm in ("ema", "ema_frozen", "ema_k2"):
        assert all(anchored[arm][step] != base[arm][step] != 0 for step in (1, 2))


def test_each_place_and_anchor_trains_in_another_way(alone):
    moved = columns(alone, "delta_norm")
    first = [moved[arm][0] for arm in ("off", "zero", "ema", "ema_last")]
    assert len({*first}) == 1  # the policy is the base, so the KL of the reward is 0
    assert len({values[-1] for arm, values in moved.items() if arm != "ema_last"}) == len(ARMS) - 1
    assert moved["ema_last"] == moved["zero"]  # a KL of 0 whatever its level
    assert columns(alone, "kl_coef")["zero"] == [0, 0, 0] and columns(alone, "kl_coef")["k2"] == [0.3] * 3


def test_packed_runs_equal_the_lone_ones(bench, alone):
    check_same(train(bench, RUNS, "packed", len(RUNS)), alone, RUNS)


def test_resumed_runs_equal_the_lone_ones(bench, alone):
    stopped = stop_after_a_step(bench, RUNS, "resumed")
    for run in RUNS:
        state = torch.load(stopped / run.sweep / run.run_id / "checkpoint" / "state.pt", weights_only=True)
        assert bool(state["policy"][0]["anchor"]) is run.recipe.kl_anchor.moves
    check_same(train(bench, RUNS, "resumed", len(RUNS)), alone, RUNS)
