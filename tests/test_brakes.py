"""The brakes of a policy's update, with literal numbers, on one weight and on upstream's loss."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rankrl.ppo.brakes import FEW_NORMS, NORMS, Brakes
from rankrl.recipe.schema import Brakes as Section


@pytest.fixture
def optimizer(stack):
    """Makes an optimizer of one weight with brakes; two micro-batches to a step."""
    import torch.distributed as dist

    from rankrl.ppo.strategy import AdapterOptimizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def make(section: Section | None = None) -> AdapterOptimizer:
        adam = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        weight = torch.nn.Parameter(torch.zeros(1))
        return AdapterOptimizer([{"params": [weight], "lr": 0.1}], adam, 0.0, 2, Brakes(section))

    return make


def step(optimizer, norm: float) -> float:
    """The weight after one step on a gradient of this norm."""
    (weight,) = optimizer.parameters
    for _ in range(2):
        (weight * norm / 2).sum().backward()
        optimizer.micro_step()
    return weight.item()


def test_a_spike_is_skipped_and_counted(optimizer):
    of = optimizer(Section(max_norm_ratio=3.0))
    before = [step(of, 1.0) for _ in range(FEW_NORMS)][-1]
    assert step(of, 3.1) == before and of.brakes.counts() == {"kl_stopped": 0, "norm_skipped": 1}
    assert of.grad_norm == pytest.approx(3.1)
    assert step(of, 2.9) < before and of.brakes.counts()["norm_skipped"] == 1
    of.brakes.new_rollout()
    assert of.brakes.counts() == {"kl_stopped": 0, "norm_skipped": 0}
    assert [*of.brakes.norms] == pytest.approx([1.0] * FEW_NORMS + [3.1, 2.9])


def test_few_norms_skip_nothing_and_a_level_that_stays_is_no_spike():
    brakes = Brakes(Section(max_norm_ratio=2.0))
    assert all(brakes.allow(norm) for norm in [1.0, 100.0] * (FEW_NORMS // 2))
    brakes = Brakes(Section(max_norm_ratio=2.0))
    assert all(brakes.allow(1.0) for _ in range(NORMS))
    assert [brakes.allow(10.0) for _ in range(NORMS)].index(True) == NORMS // 2


def test_without_brakes_every_step_is_taken_and_nothing_is_kept(optimizer):
    of = optimizer()
    weights = [step(of, norm) for norm in [1.0] * 20 + [1e9]]
    assert weights == sorted(weights, reverse=True) and len({*weights}) == 21
    assert not of.brakes.norms and of.brakes.counts() == {"kl_stopped": 0, "norm_skipped": 0}


def test_no_norm_that_is_not_finite_is_let_through_or_remembered(stack):
    brakes = Brakes(Section(max_norm_ratio=3.0))
    assert all(brakes.allow(norm) for norm in [float("nan"), *[1.0] * FEW_NORMS])
    assert not brakes.allow(float("nan")) and not brakes.allow(float("inf"))
    assert [*brakes.norms] == [1.0] * FEW_NORMS and brakes.counts()["norm_skipped"] == 2


def test_a_median_of_0_brakes_nothing(stack):
    brakes = Brakes(Section(max_norm_ratio=3.0))
    assert all(brakes.allow(norm) for norm in [*[0.0] * 20, 1.0, 1.0])


def test_the_median_goes_on_after_a_resume(optimizer):
    of, resumed, former = (optimizer(Section(max_norm_ratio=3.0)) for _ in range(3))
    for _ in range(FEW_NORMS):
        step(of, 1.0)
    state = of.state_dict()
    resumed.load_state_dict(state)
    assert not resumed.brakes.allow(3.1)
    former.load_state_dict({key: value for key, value in state.items() if key != "norms"})
    assert former.brakes.allow(3.1)  # a checkpoint from before there were brakes


def seen(brakes: Brakes, log_ratios: list[float]) -> None:
    """What brakes read from upstream's loss: the log-ratios of a micro-batch, and one padded."""
    from openrlhf.models.loss import PolicyLoss

    loss = PolicyLoss()
    brakes.watch(loss)
    new_BA = torch.tensor([[*log_ratios, 9.0]])
    mask_BA = torch.tensor([[1] * len(log_ratios) + [0]])
    loss(new_BA, torch.zeros_like(new_BA), torch.ones_like(new_BA), action_mask=mask_BA)


def test_the_kl_is_that_of_all_tokens_of_a_minibatch(stack):
    """k3 of log-ratios .2, -.2 and 0: (.0214 + .0187 + 0) / 3 = .01338 nats."""
    for bound, allowed in ((0.0133, False), (0.0134, True)):
        brakes = Brakes(Section(max_kl=bound))
        seen(brakes, [0.2, -0.2])
        seen(brakes, [0.0])
        assert brakes.allow(1.0) is allowed
        assert brakes.counts()["kl_stopped"] == 1 - allowed and brakes.stopped is not allowed
    seen(brakes, [0.2])  # of the next minibatch alone: .0214
    assert not brakes.allow(1.0)


def test_workers_add_up_before_they_decide(stack):
    """Another worker with as many tokens at a KL of 0 halves it."""
    there = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for bound, allowed in ((0.0106, False), (0.0108, True)):
        brakes = Brakes(Section(max_kl=bound), lambda here: here + there)
        seen(brakes, [0.2])
        assert brakes.allow(1.0) is allowed


def test_a_stopped_rollout_takes_no_further_step(optimizer, monkeypatch):
    of = optimizer(Section(max_kl=0.01))
    monkeypatch.setattr(of.brakes, "kl_and_tokens", [torch.tensor([0.1, 1.0])])
    assert step(of, 1.0) == 0.0 and step(of, 1.0) == 0.0
    assert of.brakes.counts() == {"kl_stopped": 2, "norm_skipped": 0} and of.grad_norm == pytest.approx(1.0)
    of.brakes.new_rollout()
    monkeypatch.setattr(of.brakes, "kl_and_tokens", [torch.tensor([0.001, 1.0])])
    assert step(of, 1.0) < 0.0 and of.brakes.counts() == {"kl_stopped": 0, "norm_skipped": 0}


def test_upstreams_status_leaves_out_what_was_not_trained(stack):
    """ppo_train weighs each micro-batch by its tokens and samples, which are none."""
    import inspect

    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    from rankrl.ppo.policy import NOTHING_TRAINED

    source = inspect.getsource(ActorPPOTrainer.ppo_train)
    for key in NOTHING_TRAINED:
        assert f'status["{key}"]' in source
    assert 'merged_status["policy_loss"]' in source and '* s["_num_action_tokens"] for s in status_list' in source
