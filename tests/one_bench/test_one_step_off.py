"""engine.one_step_off: the next rollout is sampled while the policy learns from the last one."""

import pytest
from conftest import runs_of

OFF = ("ranks=[8]", "scale.engine.one_step_off=true")


def test_samples_are_of_the_adapter_before_the_update(attach):
    """The second rollout is of an adapter that has not moved, and is weighed for that."""
    fresh = attach("ranks=[8]")
    expected = fresh.rollout(1)
    fresh.detach()
    trainer = attach(*OFF)
    assert trainer.run.recipe.correction.method == "token_clip"
    first, second = trainer.step(0), trainer.step(1)
    assert trainer.tokens_total == second["tokens_total"]
    assert second["tokens_total"] - first["tokens_total"] == sum(sample.tokens for sample in expected)
    assert second["accuracy"] == sum(sample.verdict.correct for sample in expected) / len(expected)
    assert first["engine_ratio_mean"] == pytest.approx(1, abs=1e-4) != second["engine_ratio_mean"]
    assert second["sync_gap_nats"] < 1e-4 < second["kl_step"]  # the engine held what it was to hold
    trainer.detach()


def test_a_resumed_run_samples_what_was_sampled_ahead(attach):
    steady = attach(*OFF)
    lines = [steady.step(step) for step in range(4)]
    steady.detach()
    stopped = attach(*OFF)
    for step in range(2):
        stopped.step(step)
    state = stopped.state(2)
    stopped.detach()
    resumed = attach(*OFF)
    resumed.restore(state)
    again = [resumed.step(step) for step in (2, 3)]
    resumed.detach()
    for line, other in zip(again, lines[2:], strict=True):
        assert {k: v for k, v in line.items() if k[-2:] != "_s"} == {k: v for k, v in other.items() if k[-2:] != "_s"}


@pytest.mark.parametrize(
    ("said", "words"),
    {
        r"correction\.method: got 'none', allowed: token_clip": ("correction=none",),
        "sequence_mask with bounds of its own": ("correction=sequence_mask",),
        r"engine\.one_step_off: got True": ("scale.placement.colocated=true", "scale.placement.engine_memory=0.5"),
    }.items(),
)
def test_what_cannot_be_is_refused(said, words):
    with pytest.raises(ValueError, match=said):
        runs_of("demo", *OFF, *words)
