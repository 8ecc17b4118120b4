"""The correction of engine and trainer: its section, its defaults, and OpenRLHF's loss with it."""

from __future__ import annotations

import pytest
import torch
import yaml
from conftest import runs_of

from rankrl.recipe.correction_section import BOUNDS, Correction
from rankrl.recipe.history import completed
from rankrl.sweep.identity import check_identity

BF16 = "scale.model.dtype=bfloat16"


def run_at(*words):
    return runs_of("demo", "ranks=[8]", "seeds=[0]", *words)[0]


def test_the_precision_decides_unless_the_recipe_does():
    assert run_at().recipe.correction == Correction("none")
    assert run_at(BF16).recipe.correction == Correction("token_clip", 0.0, 2.0)
    assert run_at(BF16, "correction=none").recipe.correction == Correction("none")
    assert run_at("advantage=rloo").recipe.advantage.method == "rloo"
    mask = run_at("correction.method=token_mask", "correction.high=3").recipe.correction
    assert mask == Correction("token_mask", 0.5, 3.0) and str(mask) == "token_mask, ratio 0.5 to 3"
    assert run_at("correction=sequence_mask").resolved()["recipe"]["correction"] == {
        "method": "sequence_mask",
        "low": 0.99,
        "high": 1.01,
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["correction=clip"], r"correction\.method: got 'clip', allowed: none, token_clip, token_mask, sequence_mask"),
        (["correction.low=0.5"], r"correction\.low: got 0\.5, allowed: null \(a method that is not named has no bound"),
        (["correction.method=none", "correction.high=2"], r"correction\.high: got 2\.0, allowed: null \(none has no"),
        (["correction.method=token_mask", "correction.low=1"], r"correction\.low: got 1\.0, allowed: at least 0 and"),
        (["correction.method=token_clip", "correction.high=0.9"], r"correction\.high: got 0\.9, allowed: above 1"),
    ],
)
def test_what_is_refused(words, says):
    with pytest.raises(ValueError, match=says) as refused:
        run_at(*words)
    assert "\n" not in str(refused.value)


def test_a_sweep_of_before_there_was_a_correction_had_none(tmp_path):
    """At nano it goes on as it is; in bfloat16 the recipe must say so."""
    for words in ([], [BF16]):
        record = run_at(*words).resolved()
        del record["recipe"]["correction"]
        assert completed("recipe", record["recipe"])["correction"] == {"method": "none", "low": None, "high": None}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
        check_identity(tmp_path, run_at(*words, "correction=none"))
        if not words:
            check_identity(tmp_path, run_at())
    with pytest.raises(ValueError, match=r"recipe\.correction\.method='none', and this one has 'token_clip'"):
        check_identity(tmp_path, run_at(BF16))


OPENRLHF = {
    "none": ("off", "mask", [0.5, 5.0]),
    "token_clip": ("token", "clip", [0.0, 2.0]),
    "token_mask": ("token", "mask", [0.5, 5.0]),
    "sequence_mask": ("seq", "mask", [0.99, 1.01]),
}


def policy_loss(method, **bounds):
    """OpenRLHF's loss with the arguments that a run with this correction passes to it."""
    from openrlhf.models import PolicyLoss

    from rankrl.ppo.arguments import arguments

    words = [f"correction.{key}={value}" for key, value in {"method": method, **bounds}.items()]
    found = arguments(run_at(*words), "embedded").algo.advantage
    assert bounds or OPENRLHF[method] == (
        found.is_correction_level,
        found.is_correction_mode,
        found.is_correction_threshold,
    )
    return PolicyLoss(
        0.2,
        0.28,
        is_correction_level=found.is_correction_level,
        is_correction_mode=found.is_correction_mode,
        is_correction_gating=found.is_correction_gating,
        is_correction_threshold=found.is_correction_threshold,
    )


def rollout(samples=64, tokens=100):
    """(new, old log-probabilities, advantages, action mask), all [B, A]."""
    torch.manual_seed(0)
    old_BA = -torch.rand(samples, tokens)
    new_BA = (old_BA + 0.1 * torch.randn(samples, tokens)).requires_grad_()
    mask_BA = (torch.arange(tokens) < torch.randint(1, tokens, (samples, 1))).float()
    return new_BA, old_BA * mask_BA, torch.randn(samples, tokens), mask_BA


@pytest.mark.parametrize("method", BOUNDS)
def test_a_ratio_of_1_changes_nothing_to_the_last_bit(stack, method):
    found = []
    for name in ("none", method):
        new_BA, old_BA, advantages_BA, mask_BA = rollout()
        loss, *_, filtered = policy_loss(name)(new_BA, old_BA, advantages_BA, mask_BA, rollout_log_probs=old_BA)
        loss.backward()
        found.append((loss.detach(), new_BA.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert filtered == 0


def test_a_mismatch_of_a_twentieth_of_a_nat_clips_the_expected_share(stack):
    """d is normal with deviation 0.05: P(exp(d) > 1.05) + P(exp(d) < 0.95) = 0.1646 + 0.1525."""
    new_BA, old_BA, advantages_BA, mask_BA = rollout(2000)
    engine_BA = old_BA - 0.05 * torch.randn_like(old_BA) * mask_BA
    shares = {}
    for method in ("token_clip", "token_mask"):
        loss = policy_loss(method, low=0.95, high=1.05)
        *_, filtered = loss(new_BA, old_BA, advantages_BA, mask_BA, rollout_log_probs=engine_BA)
        shares[method] = float(filtered)
    assert shares["token_clip"] == shares["token_mask"] == pytest.approx(0.3171, abs=0.004)
    *_, filtered = policy_loss("token_clip")(new_BA, old_BA, advantages_BA, mask_BA, rollout_log_probs=engine_BA)
    assert filtered == 0  # the default bounds are for what is grossly apart


def test_the_mean_ratio_is_that_of_the_sampled_tokens(stack):
    import numpy as np

    from rankrl.ppo.experience import Logprobs

    trainer = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
    engine = trainer - np.log([1.0, 1.1, 1.2]).astype(np.float32)
    assert Logprobs(engine, trainer, trainer, trainer).ratio_mean() == pytest.approx(1.1, rel=1e-6)
