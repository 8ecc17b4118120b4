"""What the KL penalty is measured to, and where it acts: formulas, arguments and bytes."""

from __future__ import annotations

import pytest
from conftest import runs_of

from rankrl.recipe.anchor_section import KLAnchor
from rankrl.recipe.cost import train_bytes

ONE = ("ranks=[1]", "seeds=[0]")


def test_an_anchor_after_three_steps(stack):
    import torch

    from rankrl.ppo.workers import move_anchor

    anchor = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[4.0]])}
    for now in (8.0, 8.0, 0.0):  # 0 -> 2 -> 3.5 -> 2.625, 4 -> 5 -> 5.75 -> 4.3125
        move_anchor(anchor, {"a": torch.tensor([now, 1.0]), "b": torch.tensor([[now]])}, 0.25)
    assert anchor["a"].tolist() == [2.625, 1.0] and anchor["b"].item() == 4.3125
    move_anchor({}, {}, 0.0)  # no anchor, nothing to move


@pytest.mark.parametrize(
    ("estimator", "values", "slopes"),
    [
        ("k2", [0.125, 0.5], [0.5, -1.0]),  # d^2 / 2, d
        ("k3", [0.1065, 0.7183], [0.3935, -1.7183]),  # exp(-d) - 1 + d, 1 - exp(-d)
    ],
)
def test_the_kl_of_the_loss_and_its_gradient(stack, estimator, values, slopes):
    """OpenRLHF's, at log-ratios d of 0.5 and -1; its default has the plain gradient."""
    import torch
    from openrlhf.models.utils import compute_approx_kl

    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    kl = compute_approx_kl(logprobs, torch.tensor([-1.5, -2.0]), kl_estimator=estimator)
    assert kl.tolist() == pytest.approx(values, abs=1e-4)
    kl.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx(slopes, abs=1e-4)


def test_the_arguments_of_a_kl_in_the_loss(stack):
    from rankrl.ppo.arguments import arguments

    kl = arguments(runs_of("demo", *ONE)[0], "model").algo.kl
    assert (kl.use_loss, kl.estimator, kl.unbiased_gradient) == (False, "k1", False)
    kl = arguments(runs_of("demo", *ONE, "kl_anchor.place=loss")[0], "model").algo.kl
    assert (kl.use_loss, kl.estimator, kl.init_coef) == (True, "k2", 1e-3)
    words = ("kl_anchor={place: loss, estimator: k3}", "rules.kl=0.02")
    kl = arguments(runs_of("demo", *ONE, *words)[0], "model").algo.kl
    assert (kl.use_loss, kl.estimator, kl.init_coef) == (True, "k3", 0.02)


def test_off_unless_a_recipe_asks_for_it():
    anchor = runs_of("demo", *ONE)[0].recipe.kl_anchor
    assert anchor == KLAnchor() and not anchor.moves and not anchor.in_loss and anchor.used_estimator == "k1"
    assert runs_of("demo", *ONE, "rules.kl=0")[0]["kl"] == 0  # no penalty is no error


def test_a_moving_anchor_takes_one_more_copy_of_the_weights():
    plain, moving = (runs_of("demo", *ONE, *words)[0] for words in ((), ("kl_anchor.reference=ema",)))
    assert train_bytes(moving) - train_bytes(plain) == 4 * 7_936
    frozen = runs_of("demo", *ONE, "kl_anchor.reference=ema", "trained=b")[0]
    assert train_bytes(frozen) - train_bytes(runs_of("demo", *ONE, "trained=b")[0]) == 4 * 7_936
