"""The instruments of an update, worked by hand, on upstream's loss, and in the optimizer."""

from __future__ import annotations

from math import exp, log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad

from rankrl.adapter.delta import delta_norm, module_size, norm_of
from rankrl.ppo.brakes import Brakes
from rankrl.ppo.instruments import READINGS, Instruments, cosine, of_ratios, quantiles, ratio_sums
from rankrl.recipe.schema import Brakes as Section


def test_the_effective_sample_of_ratios_1_1_2():
    """(1 + 1 + 2)^2 / (3 (1 + 1 + 4)) = 16 / 18, also where the tokens lie in two micro-batches."""
    logs_N = torch.tensor([1.0, 1.0, 2.0]).log()
    for parts in ([logs_N], [logs_N[:1], logs_N[1:]], [logs_N, logs_N[:0]]):
        found = of_ratios(torch.stack([ratio_sums(part) for part in parts]))
        assert found == {"ess_frac": pytest.approx(16 / 18), "ratio_max": pytest.approx(2.0)}
    assert of_ratios(torch.stack([ratio_sums(torch.zeros(5))])) == {"ess_frac": 1.0, "ratio_max": 1.0}
    assert of_ratios(torch.stack([ratio_sums(torch.tensor([1e4]))]))["ratio_max"] == pytest.approx(exp(20))
    assert of_ratios(torch.stack([ratio_sums(torch.tensor([-1e4, -1e4]))]))["ess_frac"] == pytest.approx(1)
    assert of_ratios(torch.zeros(1, 4)) == {}


def test_the_cosine_of_two_gradients():
    """(3, 4) and (4, 3): 24 / 25."""
    assert cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])) == pytest.approx(0.96)
    assert cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 0.0
    assert cosine(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])) == pytest.approx(-1.0)
    assert cosine(torch.zeros(2), torch.ones(2)) is None
    assert cosine(torch.full((2,), 1e30), torch.full((2,), 1e-30)) == pytest.approx(1)  # not in single precision
    assert cosine(torch.tensor([float("inf"), 1.0]), torch.ones(2)) is None
    assert cosine(torch.tensor([float("nan"), 1.0]), torch.ones(2)) is None


def test_the_quantiles_of_entropies():
    found = quantiles(torch.tensor([4.0, 0.0, 1.0, 3.0, 2.0, 10.0, 9.0, 8.0, 5.0, 6.0, 7.0]))
    assert found == {"entropy_p10": 1.0, "entropy_p50": 5.0, "entropy_p90": 9.0}
    assert quantiles(torch.zeros(0)) == {}


def test_the_norm_of_an_update():
    """B A = [[3, 6], [4, 8]] has 125 as its squared norm; with scale 2 it has 500; 25^2 in all."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    assert delta_norm({"q": (a, b, 1.0), "k": (a, b, 2.0)}) == pytest.approx(25.0)
    assert delta_norm({"q": (a, torch.zeros(2, 1), 1.0)}) == 0.0
    update = {name: (torch.randn(6, 9), torch.randn(7, 6), 0.5) for name in "qkv"}
    assert delta_norm(update) == pytest.approx(norm_of(module_size(*factors) for factors in update.values()))


def test_a_small_move_from_a_large_start_keeps_its_digits():
    """Factors as AdapterHost.update gives them: B0 is a thousand times what was learned."""
    a0, b0 = torch.randn(2, 9), 100 * torch.randn(7, 2)
    da, db = 1e-3 * torch.randn(2, 9), 0.1 * torch.randn(7, 2)
    factors = torch.cat([a0 + da, da]), torch.cat([db, b0], dim=1), 1.0
    whole = (b0 + db).double() @ (a0 + da).double() - b0.double() @ a0.double()
    assert delta_norm({"q": factors}) == pytest.approx(float(whole.norm()), rel=1e-3)
    assert delta_norm({"q": factors}) == pytest.approx(module_size(*factors)["delta_norm"], rel=1e-9)


def see(instruments: Instruments, ratios: list[float], entropies: list[float]) -> None:
    """What instruments read of one sample, after a prompt of 2 tokens, padded."""
    from openrlhf.models.loss import PolicyLoss

    mask_BA, loss = torch.tensor([[1] * len(ratios) + [0]]), PolicyLoss()
    instruments.watch(loss)
    new_BA = torch.tensor([[*ratios, 99.0]]).log()
    loss(new_BA, torch.zeros_like(new_BA), torch.ones_like(new_BA), action_mask=mask_BA)
    output = SimpleNamespace(entropy=torch.tensor([[50.0, *entropies, 99.0]], requires_grad=True))

    class Policy(torch.nn.Module):
        def forward(self, sequences, action_mask, return_entropy):
            return new_BA, output

    policy = Policy()
    with instruments.watching(policy):
        policy(None, mask_BA, return_entropy=True)
    policy(None, mask_BA, return_entropy=True)  # by another run


def test_an_update_is_read_without_padding_and_prompts(stack):
    instruments = Instruments()
    assert instruments.readings() == {}
    see(instruments, [1.0, 1.0], [0.5, 1.5])
    see(instruments, [2.0], [1.0])
    found = instruments.readings()
    assert found["ess_frac"] == pytest.approx(16 / 18) and found["ratio_max"] == pytest.approx(2.0)
    assert [found[f"entropy_p{n}"] for n in (10, 50, 90)] == pytest.approx([0.6, 1.0, 1.4])
    assert {*found} < {*READINGS}
    instruments.new_update()
    assert instruments.readings() == {}


def test_workers_with_other_numbers_of_tokens_read_alike(stack):
    """Another worker has ratios 1, 1 in a micro-batch, and one token of entropy 7."""
    there = {1: [torch.tensor([1]), ratio_sums(torch.zeros(2))], 2: [torch.tensor([1]), torch.tensor([7.0])]}
    asked = iter([torch.tensor([4]), there[1][1], *there[2]])

    def gather(values_K: torch.Tensor) -> torch.Tensor:
        other = next(asked)
        return torch.stack([values_K, pad(other, (0, len(values_K) - len(other))).to(values_K)])

    instruments = Instruments(gather)
    see(instruments, [2.0], [3.0])
    found = instruments.readings()
    assert found["ess_frac"] == pytest.approx(16 / 18) and found["ratio_max"] == pytest.approx(2.0)
    assert found["entropy_p50"] == pytest.approx(5.0)


@pytest.fixture
def optimizer(stack):
    """Makes an optimizer of two weights whose steps have a number of micro-batches."""
    import torch.distributed as dist

    from rankrl.ppo.strategy import AdapterOptimizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    adam = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def make(accumulate: int, instruments: Instruments | None, brakes: Brakes | None = None):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1} for _ in range(2)]
        return AdapterOptimizer(groups, adam, 2.0, accumulate, brakes, instruments)

    return make


def train(optimizer, gradients: list[tuple[float, float]]) -> list[float]:
    """The weights after micro-batches with these gradients."""
    for gradient in gradients:
        sum((w * g).sum() for w, g in zip(optimizer.parameters, gradient, strict=True)).backward()
        optimizer.micro_step()
    return [w.item() for w in optimizer.parameters]


GRADIENTS = [(3.0, 0.0), (0.0, 4.0), (4.0, 0.0), (0.0, 3.0)]
SMALL = [(0.1, 0.0), (0.1, 0.1), (0.0, 0.1), (0.0, 0.0)]


def test_an_optimizer_step_is_read_and_stays_the_same(optimizer):
    """Halves (3, 4) and (4, 3), clipped; then (.2, .1) and (0, .1), whose cosine is 1 / sqrt 5."""
    instruments = Instruments()
    seen, blind = optimizer(4, instruments), optimizer(4, None)
    assert train(seen, GRADIENTS) == train(blind, GRADIENTS)
    assert instruments.readings() == {"grad_cosine": pytest.approx(0.96), "norm_clipped_frac": 1.0}
    assert train(seen, SMALL) == train(blind, SMALL)
    mean = (0.96 + 1 / sqrt(5)) / 2
    assert instruments.readings() == {"grad_cosine": pytest.approx(mean), "norm_clipped_frac": 0.5}
    assert seen.state_dict().keys() == blind.state_dict().keys() and seen.first_half_P is None


def test_of_three_micro_batches_the_first_is_compared_with_two(optimizer):
    instruments = Instruments()
    train(optimizer(3, instruments), [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    assert instruments.readings()["grad_cosine"] == pytest.approx(1 / sqrt(2))


def test_steps_of_one_micro_batch_are_compared_with_each_other(optimizer):
    """(.1, 0), (.1, .1) and (0, .1): 1 / sqrt 2 twice, and nothing with (0, 0)."""
    instruments = Instruments()
    of = optimizer(1, instruments)
    train(of, SMALL)
    assert instruments.readings() == {"grad_cosine": pytest.approx(1 / sqrt(2)), "norm_clipped_frac": 0.0}
    instruments.new_update()
    train(of, GRADIENTS[:1])
    assert instruments.readings() == {"norm_clipped_frac": 1.0}  # no other step of this rollout


def test_steps_that_a_brake_stopped_are_not_read(optimizer):
    brakes, instruments = Brakes(Section(max_kl=log(2))), Instruments()
    of = optimizer(2, instruments, brakes)
    brakes.kl_and_tokens = [torch.tensor([1.0, 1.0])]
    train(of, GRADIENTS)
    assert brakes.counts()["kl_stopped"] == 2 and len(instruments.cosines) == 1 and of.first_half_P is None
