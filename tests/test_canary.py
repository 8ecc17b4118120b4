"""The canary, and the digests of a sync."""

import math

import numpy as np
import pytest
import torch
from conftest import runs_of

from rankrl.ppo.canary import Canary, SyncError, check_digests
from rankrl.ppo.serving import Loaded, digest, pack, unpack
from rankrl.recipe.load import load_scale

NOISE, LOUD = 0.004, 0.06 * (math.pi / 2) ** 0.5
"""Standard deviations of d: a quiet engine, and one whose mean gap is 0.06 nats."""
MOVED = {1: 0.03, 32: 0.06}
"""Root mean square of log p - log p_previous by rank, as at nano after the warm-up."""


def canary_case(
    held: str,
    steps: int = 10,
    tokens: int = 600,
    moved_a_step: float = 0.02,
    noise: float = NOISE,
    right_until: int = 0,
    max_gap_nats: float = 0.2,
) -> Canary:
    """A canary after `steps` steps of a moving policy, while the engine holds `held`."""
    rng, canary = np.random.default_rng(0), Canary(max_gap_nats)
    for step in range(steps):
        base = rng.normal(-1, 0.5, tokens)
        direction = rng.normal(0, 1, tokens)
        trainer, previous = base + moved_a_step * step * direction, base + moved_a_step * max(step - 1, 0) * direction
        wrong = 0.1 * moved_a_step * step * rng.normal(0, 1, tokens)
        holds = {"right": trainer, "base": base, "previous": previous, "corrupt": trainer + wrong}
        engine = holds["right" if step < right_until else held] + rng.normal(0, noise, tokens)
        canary.check(engine, trainer, base, previous)
    return canary


def test_canary_is_quiet_on_a_right_engine():
    canary = canary_case("right", steps=60)
    assert canary.noise_rms == pytest.approx(NOISE, rel=0.1)
    assert canary.noise_gap == pytest.approx(NOISE * (2 / math.pi) ** 0.5, rel=0.1)
    assert canary.base.share == canary.previous.share == 0


@pytest.mark.parametrize(
    ("held", "says"),
    [("base", "the base model"), ("previous", "the previous step"), ("corrupt", "a tensor or a scale")],
)
def test_canary_names_what_a_wrong_engine_holds(held, says):
    with pytest.raises(SyncError, match=f"adapter sync: .*{says}"):
        canary_case(held)


@pytest.mark.parametrize("rank", MOVED)
def test_a_loud_engine_passes_and_a_stale_one_as_loud_does_not(rank):
    loud = {"tokens": 300, "noise": LOUD, "moved_a_step": MOVED[rank]}  # tokens of 64 samples at nano
    assert canary_case("right", 60, **loud).noise_gap == pytest.approx(0.06, rel=0.1)
    for held, says in (("base", "acts with the "), ("previous", "the previous step")):
        with pytest.raises(SyncError, match=says):
            canary_case(held, 10, **loud)
        with pytest.raises(SyncError, match=says):  # a fault that begins late is seen as soon
            canary_case(held, 40, right_until=30, **loud)


def test_a_gap_that_the_trainers_own_rounding_makes_is_no_evidence():
    """d and e then share noise, and nothing else is in e: the share is 1/2 for a right engine."""
    rng, canary, shares = np.random.default_rng(0), Canary(0.2), []
    for step in range(60):
        trainer, previous, engine = rng.normal(-1, 0.05, (3, 5000))
        canary.check(engine, trainer, trainer, previous if step else trainer)
        shares.append(float(((engine - trainer) * (previous - trainer)).sum() / ((previous - trainer) ** 2).sum()))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01) and canary.previous.share == 0


def test_a_gap_over_the_limit_is_told_with_that_of_the_first_rollout():
    figures = r"differ by 0\.0\d+ nats a token, at the first rollout 0\.0\d+"
    says = figures + r", allowed scale\.max_sync_gap_nats=0\.05\. .*raise the limit"
    with pytest.raises(SyncError, match=says):
        canary_case("right", noise=LOUD, max_gap_nats=0.05)


def test_the_limit_of_the_gap_follows_the_precision():
    limits = [load_scale("nano", {"model": {"dtype": dtype}}).gap_limit_nats for dtype in ("float32", "bfloat16")]
    assert limits == [0.05, 0.2] and load_scale("nano", {"max_sync_gap_nats": 0.3}).gap_limit_nats == 0.3
    record = runs_of("demo", "scale.max_sync_gap_nats=0.3")[0].resolved()
    assert record == runs_of("demo")[0].resolved()  # a run that the limit stopped can go on with another
    with pytest.raises(ValueError, match=r"max_sync_gap_nats: got 0\.0, allowed: above 0"):
        load_scale("nano", {"max_sync_gap_nats": 0.0})


def test_canary_state_survives_a_checkpoint():
    canary = canary_case("previous", steps=2, noise=LOUD)
    assert canary.previous.share > 0.5 and Canary.from_state(canary.state(), 0.2) == canary
    evidence = {"de": 1.0, "ee": 2.0, "dd": 3.0, "tokens": 4.0}
    early = {"noise_rms": 0.1, "base": evidence, "previous": evidence}
    assert Canary.from_state(early, 0.2) == Canary(0.2, 0.1, 0.1)  # of a rankrl without a mean gap


def test_a_digest_depends_on_every_byte_and_name():
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    payload = pack({"m": (a, b)}, {"m": 2.0}, "bfloat16")
    tensors = unpack(payload.names, payload.shapes, payload.dtype, payload.data)
    assert digest(payload.names, tensors.values()) == payload.digest and len(payload.digest) == 64
    assert digest([name.replace("m", "n") for name in payload.names], tensors.values()) != payload.digest
    tensors["base_model.model.m.lora_B.weight"].view(torch.uint8)[0, 0] ^= 1
    assert digest(payload.names, tensors.values()) != payload.digest
    fine, wrong = Loaded(10, "a1", ["a1", "a1"]), Loaded(10, "a1", ["a1", "b2"])
    check_digests([fine])
    with pytest.raises(SyncError, match="worker 1 of engine 1 holds tensors with SHA-256 b2, the trainer has sent a1"):
        check_digests([fine, wrong])
