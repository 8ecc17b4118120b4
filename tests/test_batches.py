"""Prompts, samples and minibatches of a batch size, and the history of a prompt's rewards."""

from __future__ import annotations

import pytest
from conftest import runs_of

from rankrl.recipe.advantage_section import Advantage
from rankrl.recipe.idle import idle_histories


def shape(*words: str) -> list[tuple[int, int, int, int]]:
    """Batch size, prompts, updates and samples of an optimizer step, of each batch size."""
    runs = runs_of("low_rank", "ranks=[1]", "seeds=[0]", *words)
    return [(run.batch_size, run.prompts, run.updates, run.train_batch) for run in runs]


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        ((), [(16, 16, 2, 64), (64, 64, 2, 256)]),  # updates fixed: a larger batch, larger minibatches
        (("minibatch_prompts=8",), [(16, 16, 2, 64), (64, 64, 8, 64)]),  # minibatch fixed: more updates
        (("samples_per_prompt=16", "batch_samples_per_prompt=8"), [(16, 8, 2, 64), (64, 32, 2, 256)]),
        (("samples_per_prompt=4", "batch_samples_per_prompt=8"), [(16, 32, 2, 64), (64, 128, 2, 256)]),
        (
            ("samples_per_prompt=16", "batch_samples_per_prompt=8", "minibatch_prompts=4"),
            [(16, 8, 2, 64), (64, 32, 8, 64)],
        ),
    ],
)
def test_what_a_batch_size_means(words, shapes):
    assert shape("batch_sizes=[16,64]", *words) == shapes


def test_a_traded_arm_is_a_cell_of_the_same_batch_size_and_samples():
    arms = "arms={off: {}, more: {samples_per_prompt: 16, batch_samples_per_prompt: 8}}"
    runs = runs_of("low_rank", "ranks=[1]", "seeds=[0]", "equal_samples=true", arms)
    assert [run.run_id for run in runs] == ["off-r1-b16-s0", "more-r1-b16-s0"]
    assert {run.samples for run in runs} == {16 * 8 * 500}


def test_optimizer_steps_follow_the_minibatch():
    run = runs_of("low_rank", "ranks=[1]", "seeds=[0]", "batch_sizes=[64]", "minibatch_prompts=8", "steps=10")[0]
    assert run.optimizer_steps == 80


@pytest.fixture
def history(stack):
    from rankrl.ppo.reward_history import RewardHistory

    return RewardHistory(Advantage("history", discount=0.5, prior_strength=2.0))


def test_the_baseline_of_a_prompt_that_comes_again(history):
    import torch

    first = history.less_baseline(["a", "b"], torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    # a: prior 2 responses at 1, one other: (2 + 0) / 3 and (2 + 1) / 3
    # b: prior 2 responses at 1/2, one other: (1 + 1) / 3
    assert first.flatten().tolist() == pytest.approx([1 / 3, -1, 1 / 3, 1 / 3])
    again = history.less_baseline(["c", "a"], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    # c: prior at (3/2 + 2) / (2 + 2) = 7/8: (7/4 + 0) / 3.
    # a: prior at (3/2 + 0) / 4 = 3/8; past 1/2 of 1; one other: (3/4 + 1/2 + 1) / (2 + 1 + 1)
    assert again.flatten().tolist() == pytest.approx([-7 / 12, -7 / 12, 7 / 16, 7 / 16])
    assert history.by_prompt == {"a": (2.5, 3.0), "b": (2.0, 2.0), "c": (0.0, 2.0)}
    assert (history.total, history.count) == (3.5, 6.0)


def test_it_goes_on_from_a_checkpoint(history):
    import copy

    import torch

    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    history.less_baseline(["a", "b"], rewards)
    other = type(history)(Advantage("history", discount=0.5, prior_strength=2.0))
    other.restore(copy.deepcopy(history.state()))
    assert torch.equal(other.less_baseline(["b", "c"], rewards), history.less_baseline(["b", "c"], rewards))


def test_the_baseline_does_not_depend_on_the_response_itself(history):
    """So the gradient stays unbiased: the reward of one response moves its own advantage 1 to 1."""
    import copy

    import torch

    rewards = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    history.less_baseline([*"abcd"], rewards)
    moved = rewards.clone()
    moved[2, 1] += 1
    ours, theirs = (copy.deepcopy(history).less_baseline([*"dcba"], r) for r in (rewards, moved))
    assert float((theirs - ours)[2, 1]) == pytest.approx(1, abs=1e-6)


def test_single_responses_and_a_single_prompt_are_compared_with_the_past(history):
    import torch

    assert history.less_baseline(["a"], torch.tensor([[1.0]])).item() == 1.0  # nothing is known: 0
    assert history.less_baseline(["b"], torch.tensor([[1.0]])).item() == 0.0  # as good as a
    # prior 2 at 1, past 1/2 of 1
    assert history.less_baseline(["a"], torch.tensor([[0.0]])).item() == pytest.approx(-1.0)


def test_history_takes_single_responses_to_upstream_too(stack):
    from rankrl.ppo.arguments import arguments

    words = ("ranks=[1]", "seeds=[0]", "advantage.method=history", "samples_per_prompt=1")
    args = arguments(runs_of("low_rank", *words)[0], "model")
    assert args.rollout.n_samples_per_prompt == 1 and args.algo.advantage.estimator == "reinforce"


def test_a_history_without_a_past_is_named():
    words = ("ranks=[1]", "seeds=[0]", "advantage.method=history")
    (said,) = idle_histories(runs_of("low_rank", *words, "steps=375"))
    assert said.startswith(
        "warning: advantage.method=history has no history: 375 steps of 16 prompts, 6,000 train items"
    )
    assert idle_histories(runs_of("low_rank", *words, "steps=376")) == []
