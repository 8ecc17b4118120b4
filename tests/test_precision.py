"""Precisions: a base in float16 with a scaled loss, and adapters multiplied as the base."""

from types import SimpleNamespace

import pytest
import torch
from conftest import runs_of
from tiny_models import SPLIT, tiny_model

ADAM = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)


@pytest.fixture
def optimizer(stack):
    """Makes an optimizer of one weight of 1, for a base in float16 or not."""
    import torch.distributed as dist

    from rankrl.ppo.strategy import AdapterOptimizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def make(half):
        return AdapterOptimizer([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1}], ADAM, 0.5, half=half)

    return make


def step(optimizer, slope: float) -> float:
    """A step along a gradient of `slope`, through float16 activations. Returns the weight."""
    (weight,) = optimizer.parameters
    loss = (weight.half() * slope).float().sum()
    optimizer.scaler.scale(loss).backward()
    optimizer.micro_step()
    return weight.item()


def test_a_scaled_loss_takes_the_same_step(optimizer):
    plain, half = optimizer(False), optimizer(True)
    assert step(plain, 2.0) == step(half, 2.0) == pytest.approx(0.9)
    assert plain.grad_norm == half.grad_norm == 2.0  # of the loss itself, before clipping


def test_a_small_gradient_is_lost_in_float16_unless_scaled(optimizer):
    """Half of the smallest number of float16 is 3e-8."""

    def small(made):
        (weight,) = made.parameters
        made.scaler.scale((weight.half() * 1.0).float().sum() * 2e-8).backward()
        made.micro_step()
        return weight.item()

    assert small(optimizer(False)) == 1.0 and small(optimizer(True)) == pytest.approx(0.9, abs=0.05)


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(optimizer):
    made = optimizer(True)
    assert made.scaler.get_scale() == 4096
    assert step(made, 100.0) == 1.0 and made.scaler.get_scale() == 2048  # 409,600 is beyond float16
    assert step(made, 2.0) == pytest.approx(0.9)
    assert made.brakes.counts()["norm_skipped"] == 1
    again = optimizer(True)
    again.load_state_dict(made.state_dict())
    assert again.scaler.get_scale() == 2048


def test_a_loss_that_is_never_finite_is_no_matter_of_scale(optimizer):
    """After twelve halvings the step is taken as it is, and the run diverges."""
    made = optimizer(True)
    for _ in range(12):
        assert step(made, float("inf")) == 1.0
    assert made.scaler.get_scale() == 1
    assert not torch.isfinite(torch.tensor(step(made, float("inf"))))


def delta(host, ids, labels):
    """(the loss's gradient of every factor, logits) of a model with an adapter."""
    logits = host.model(ids).logits.float()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    found = [p.grad.clone() for p in host.model.parameters() if p.grad is not None]
    for p in host.model.parameters():
        p.grad = None
    return found, logits.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_multiplied_as_the_base_have_its_rounding(stack, tmp_path, dtype):
    """Measured against float32 throughout: the base's own rounding is the larger part."""
    from transformers import AutoModelForCausalLM

    from rankrl.adapter.factors import starting_factors
    from rankrl.adapter.host import AdapterHost
    from rankrl.recipe.init_section import Init
    from rankrl.recipe.rank_table import uniform

    path = tiny_model("qwen3", tmp_path / "model")
    modules = {
        "q_proj": [64, 128],
        "k_proj": [64, 64],
        "v_proj": [64, 64],
        "o_proj": [128, 64],
        "gate_proj": [64, 128],
        "up_proj": [64, 128],
        "down_proj": [128, 64],
    }
    assert list(modules) == SPLIT
    draw = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(3, 384, (4, 16), generator=draw) for _ in range(2))
    found = {}
    for name, base, as_base in (("exact", torch.float32, False), ("float32", dtype, False), ("base", dtype, True)):
        host = AdapterHost(AutoModelForCausalLM.from_pretrained(path, dtype=base), modules, 2, as_base)
        table = uniform(host.shapes, 4, lambda rank: 8.0)
        rows, _ = starting_factors(Init(), 0, table, None)
        columns = {
            row.module: 0.05 * torch.randn(host.shapes[row.module][1], 4, generator=torch.Generator().manual_seed(i))
            for i, row in enumerate(table)
        }
        host.attach("a", table, rows)
        with torch.no_grad():
            for module, (_, b) in host.factors("a", table).items():
                b.copy_(columns[module])
        assert {p.dtype for p in host.model.parameters() if p.requires_grad} == {torch.float32}
        found[name] = torch.cat([g.flatten() for g in delta(host, ids, labels)[0]])
    error = {
        name: ((found[name] - found["exact"]).norm() / found["exact"].norm()).item() for name in ("float32", "base")
    }
    assert error["base"] != error["float32"]  # PEFT heeds the switch that keeps it from casting inputs
    assert 0 < error["base"] < 1.5 * error["float32"] < 0.1, error


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"model\.adapter_dtype: got 'base', allowed: float32"):
        runs_of("demo", "scale.model.adapter_dtype=base")
    with pytest.raises(ValueError, match=r"engine\.sleep: got True"):
        runs_of("low_rank", "scale=qwen3-8b", "scale.engine.sleep=true")
    with pytest.raises(ValueError, match=r"engine\.batch_invariant: got True"):
        runs_of("demo", "scale.engine.batch_invariant=true")
