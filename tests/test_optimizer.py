"""What is trained and by which step: the spectral optimizer against its formula written out, an
adapter whose A is frozen, and starts in the tail of W."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import rankrl, runs_of
from torch import nn

from rankrl.adapter.factors import starting_factors
from rankrl.adapter.host import AdapterHost
from rankrl.adapter.weights import start_from_weights
from rankrl.ppo.serving import digest, pack, unpack, with_a
from rankrl.ppo.spectral import Spectral, inverse_root
from rankrl.recipe.idle import idle_settings
from rankrl.recipe.init_section import Init
from rankrl.recipe.rank_table import uniform
from rankrl.recipe.rules_section import Rules

D_IN, D_OUT = 12, 9


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pair(rank, seed=0, b_is_zero=False):
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, D_IN, generator=draw), torch.randn(D_OUT, rank, generator=draw)
    return nn.Parameter(a), nn.Parameter(torch.zeros_like(b) if b_is_zero else b)


def taken(pairs, grads, *, both=True, lr=0.1, momentum=0.0, decay=0.0):
    """Takes a step of the optimizer for each list of dL/dW by module, at the present factors."""
    rows, columns = [a for a, _, _ in pairs], [b for _, b, _ in pairs]
    groups = ([{"params": rows, "lr": lr}] if both else []) + [{"params": columns, "lr": lr}]
    optimizer = Spectral(groups, pairs, momentum, decay)
    for step in grads:
        for (a, b, scale), grad in zip(pairs, step, strict=True):
            a.grad, b.grad = scale * b.detach().T @ grad, scale * grad @ a.detach().T
        optimizer.step()
    return optimizer


def delta(a, b, scale):
    return (scale * b.double() @ a.double()).detach()


def msign(x):
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    return u @ vt


def power(gram, exponent):
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def test_the_first_step_at_rank_1_has_exactly_the_norm_of_the_rate():
    (a, b), grad = pair(1, b_is_zero=True), torch.randn(D_OUT, D_IN)
    kept = a.detach().clone()
    taken([(a, b, 16.0)], [[grad]], lr=0.03)
    assert torch.linalg.matrix_norm(delta(a, b, 16.0), 2).item() == pytest.approx(0.03, rel=1e-6)
    assert torch.equal(a, kept)  # with B = 0 there is no step for A
    direction = grad @ kept.T / (grad @ kept.T).norm()
    assert torch.allclose(b, -0.03 / 16 / kept.norm() * direction, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("scale", [16.0, 0.5])
def test_b_alone_moves_the_product_by_the_rate_and_as_the_formula_says(rank, scale):
    (a, b), grad = pair(rank), torch.randn(D_OUT, D_IN)
    before, b0, wide = delta(a, b, scale), b.detach().clone(), a.detach().double()
    taken([(a, b, scale)], [[grad]], both=False, lr=0.2)
    root = power(wide @ wide.T, -0.5)
    expected = -0.2 / scale * msign(b.grad.double() @ root) @ root
    assert torch.allclose((b - b0).double(), expected, atol=1e-5)
    singular = torch.linalg.svdvals(delta(a, b, scale) - before)
    assert singular[:rank].tolist() == pytest.approx([0.2] * rank, rel=1e-3)  # the same in all directions


def test_both_factors_move_by_half_the_rate_as_the_formula_says():
    (a, b), grad = pair(4), torch.randn(D_OUT, D_IN)
    a0, b0 = a.detach().clone(), b.detach().clone()
    taken([(a, b, 2.0)], [[grad]], lr=0.2)
    root_a, root_b = power(a0 @ a0.T, -0.5), power(b0.T @ b0, -0.5)
    g_a, g_b = 2 * b0.T @ grad, 2 * grad @ a0.T
    assert torch.allclose(b - b0, -0.05 * msign(g_b @ root_a) @ root_a, atol=1e-5)
    assert torch.allclose(a - a0, -0.05 * root_b @ msign(root_b @ g_a), atol=1e-5)
    tangent = 2 * ((b - b0) @ a0 + b0 @ (a - a0))
    assert torch.linalg.matrix_norm(tangent, 2) <= 0.2 + 1e-6


def test_neither_alpha_nor_how_the_product_is_split_changes_the_step():
    grads = [[torch.randn(D_OUT, D_IN)] for _ in range(3)]
    products = []
    for scale, more in ((1.0, 1.0), (16.0, 1.0), (1.0, 30.0)):
        a, b = pair(3)
        a.data.mul_(more)
        b.data.div_(scale * more)
        taken([(a, b, scale)], grads, lr=0.1)
        products.append(delta(a, b, scale))
    assert torch.allclose(products[0], products[1], atol=1e-4) and torch.allclose(products[0], products[2], atol=1e-4)


def test_ranks_mix_momentum_averages_and_decay_takes_its_share_of_the_product():
    one, three = pair(1), pair(3, seed=1)
    grads = [torch.randn(D_OUT, D_IN) for _ in range(2)]
    b0, a0 = one[1].detach().clone(), one[0].detach().clone()
    taken([(*one, 1.0), (*three, 4.0)], [[grads[0]] * 2, [grads[1]] * 2], both=False, momentum=0.75)
    means = [0.25 * grads[0] @ a0.T, (0.75 * 0.25 * grads[0] + 0.25 * grads[1]) @ a0.T]
    expected = b0 - sum(0.1 * mean / mean.norm() / a0.norm() for mean in means)
    assert torch.allclose(one[1], expected, atol=1e-6)
    a, b = pair(3)
    before = delta(a, b, 1.0)
    taken([(a, b, 1.0)], [[torch.zeros(D_OUT, D_IN)]], decay=0.5)  # no gradient, no step
    assert torch.allclose(delta(a, b, 1.0), (1 - 0.1 * 0.5) * before, atol=1e-6)


@pytest.mark.parametrize("inputs", [2, 12])
@pytest.mark.parametrize("rank", [1, 8])
def test_no_step_is_much_longer_than_the_rate_however_small_b_becomes(rank, inputs):
    """dB dA is no part of the tangent step, and has no bound without damping.

    Directions of B are pushed through 0 by noise, or stay there where `inputs` span fewer.
    """
    seen = torch.randn(inputs, D_IN)
    (a, b), draw, moved = pair(rank, b_is_zero=True), torch.Generator().manual_seed(1), []
    for _ in range(300):
        before = delta(a, b, 4.0)
        taken([(a, b, 4.0)], [[torch.randn(D_OUT, inputs, generator=draw) @ seen]], lr=0.05)
        moved.append(float(torch.linalg.matrix_norm(delta(a, b, 4.0) - before, 2)) / 0.05)
    assert max(moved) < 3.5 and sum(moved) / len(moved) < 1.1


def test_a_gram_is_damped_and_a_broken_one_shows():
    grams, zero = torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]).double(), torch.zeros(2)
    found = inverse_root(grams, 0.01, zero)
    assert found[0].diag().tolist() == pytest.approx([0.5, 5.0]) and not found[1].any()
    found = inverse_root(grams, 0.01, torch.tensor([0.25, 0.25]))
    assert found[0].diag().tolist() == pytest.approx([0.5, 2.0])
    assert found[1].diag().tolist() == pytest.approx([2.0, 2.0])
    assert inverse_root(torch.full((1, 2, 2), torch.inf).double(), 0.01, zero[:1]).isnan().all()


class Nets(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(6, 4), "k_proj": nn.Linear(4, 6)}) for _ in "ab")

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer["k_proj"](torch.tanh(layer["q_proj"](x))))
        return x


def hosted(method, norm, trained="b"):
    """(host, table) of a seeded net with an adapter `x` of rank 3."""
    torch.manual_seed(0)
    host = AdapterHost(Nets(), {"q_proj": [6, 4], "k_proj": [4, 6]}, 2)
    table = uniform(host.shapes, 3, lambda rank: 12.0)
    start = start_from_weights(host.linears(), method, 3) if method in ("rlmo", "olora_tail") else None
    host.attach("x", table, *starting_factors(Init(method, norm), 0, table, start), trained)
    return host, table


def updates(host, table, optimizer_of, steps=8):
    """delta W of every module after each step."""
    factors = host.factors("x", table)
    optimizer = optimizer_of([(a, b, host.layer(m).scaling["x"]) for m, (a, b) in factors.items()])
    x, goal, found = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)), torch.ones(5, 6), []
    for _ in range(steps):
        (host.model(x) - goal).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append({m: (b @ a).detach().clone() for m, (a, b) in host.update("x", table).items()})
    return found


def adamw(pairs):
    return torch.optim.AdamW([b for _, b, _ in pairs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)


def spectral(pairs):
    return Spectral([{"params": [b for _, b, _ in pairs], "lr": 0.05}], pairs, 0.9, 0.0)


@pytest.mark.parametrize("method", [adamw, spectral])
def test_with_a_frozen_olora_tail_takes_the_steps_of_rlmo_with_unit_rows(method):
    ours, theirs = (updates(*hosted(start, "own"), method) for start in ("olora_tail", "rlmo"))
    for step, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        for module, product in left.items():
            assert product.norm() > 0.005
            assert (product - right[module]).norm() < 2e-5 * (step + 1), module  # fp32 rounds B0 + dB


def test_with_a_trained_olora_tail_is_not_rlmo():
    def both(pairs):
        return torch.optim.AdamW([p for a, b, _ in pairs for p in (a, b)], lr=0.01)

    ours, theirs = (updates(*hosted(start, "own", "both"), both)[-1] for start in ("olora_tail", "rlmo"))
    assert all((ours[m] - theirs[m]).norm() > 1e-3 for m in ours)


@pytest.mark.parametrize("d_out", [9, 12, 20])
def test_olora_tail_starts_at_the_bottom_singular_vectors(d_out):
    torch.manual_seed(0)
    linear = nn.Linear(12, d_out, bias=False)
    start = start_from_weights({"m": linear}, "olora_tail", 4)
    u, _, vt = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    tail = sum(torch.outer(u[:, -i], vt[-i]) for i in range(1, 5))  # U_{-r} V_{-r}^T, without singular values
    assert torch.allclose(start.columns["m"].double() @ start.rows["m"].double(), tail, atol=1e-5)
    assert torch.equal(start.rows["m"], start_from_weights({"m": linear}, "rlmo", 4).rows["m"])
    gram = start.columns["m"].T @ start.columns["m"]
    assert torch.allclose(gram, torch.eye(4), atol=1e-5)
    table = uniform({"m": (12, d_out)}, 2, lambda rank: 8.0)
    for norm, length in (("own", 1.0), ("kaiming", 3**-0.5)):
        rows, columns = starting_factors(Init("olora_tail", norm), 0, table, start)
        assert torch.allclose(rows["m"].norm(dim=1), torch.full((2,), length), atol=1e-6)
        product = sum(torch.outer(u[:, -i], vt[-i]) for i in (1, 2))
        assert torch.allclose((columns["m"] @ rows["m"]).double(), product, atol=1e-5)


def test_a_frozen_a_has_no_gradient_and_is_frozen_again_when_it_comes_back():
    host, table = hosted("kaiming", "kaiming")
    host.attach("y", table, *starting_factors(Init(), 1, table, None))
    for name, wants in (("x", 4), ("y", 8)):
        host.activate(name)
        learning = [n for n, p in host.model.named_parameters() if p.requires_grad and f".{name}." in n]
        assert len(learning) == wants
    host.detach("x")
    host.attach("x", table, *starting_factors(Init(), 1, table, None))
    assert all(a.requires_grad for a, _ in host.factors("x", table).values())


def test_an_offset_with_a_frozen_is_served_at_its_own_rank():
    host, table = hosted("olora_tail", "own")
    updates(host, table, adamw)
    x = torch.randn(3, 6)
    acting = host.model(x)
    for a, b in host.update("x", table).values():
        assert a.shape[0] == b.shape[1] == 3
    plain = {m: 4.0 * b @ a for m, (a, b) in host.update("x", table).items()}
    with host.disabled(), torch.no_grad():
        for module, linear in host.linears().items():
            linear.weight += plain[module]
        assert torch.allclose(host.model(x), acting, atol=1e-5)


def test_a_sync_of_b_alone_gives_engines_the_whole_adapter():
    factors = {m: tuple(p.detach() for p in pair(2, seed)) for seed, m in enumerate(("l.0.q", "l.1.q"))}
    scales = dict.fromkeys(factors, 2.0)
    first = pack(factors, scales, "bfloat16", a_stays=True)
    kept = {n: t for n, t in unpack(first.names, first.shapes, "bfloat16", first.data).items() if "lora_A" in n}
    moved = {m: (a, b + 1) for m, (a, b) in factors.items()}
    then, whole = pack(moved, scales, "bfloat16", True, b_alone=True), pack(moved, scales, "bfloat16")
    assert (len(first.data), len(then.data)) == (2 * 2 * 2 * (D_IN + D_OUT), 2 * 2 * 2 * D_OUT)
    found = with_a(unpack(then.names, then.shapes, "bfloat16", then.data), kept)
    assert [*found] == whole.names and digest(whole.names, found.values()) == then.digest == whole.digest
    with pytest.raises(KeyError):
        with_a(unpack(then.names, then.shapes, "bfloat16", then.data), {})


def test_adamw_gets_the_options_of_the_recipe_and_todays_by_default(stack):
    from rankrl.ppo.arguments import arguments

    words = ("optimizer.betas=[0.8,0.99]", "optimizer.eps=1e-6", "optimizer.weight_decay=0.1")
    for given, expected in ((words, ([0.8, 0.99], 1e-6, 0.1)), ((), ([0.9, 0.95], 1e-8, 0.0))):
        args = arguments(runs_of("demo", *given)[0], "/model")
        adam = args.actor.adam
        assert ([*adam.betas], adam.eps, adam.weight_decay) == expected
        assert ([*args.critic.adam.betas], args.critic.adam.eps) == ([0.9, 0.95], 1e-8)


def test_the_options_of_adamw_may_be_functions_of_rank(stack):
    from rankrl.ppo.arguments import arguments

    words = (
        "ranks=[1,32]",
        "seeds=[0]",
        "optimizer.weight_decay=0.1",
        "rules.weight_decay={rule: power, exponent: -0.5}",
        "rules.beta1=0.8",
        "rules.beta2={rule: table, table: {1: 0.99, 32: 0.95}}",
        "rules.eps={rule: power, exponent: -1}",
    )
    for run, expected in zip(
        runs_of("demo", *words), ([0.8, 0.99, 3.2e-7, 0.565685], [0.8, 0.95, 1e-8, 0.1]), strict=True
    ):
        adam = arguments(run, "/model").actor.adam
        assert [*adam.betas, adam.eps, adam.weight_decay] == pytest.approx(expected, rel=1e-5)
        assert [run[name] for name in ("beta1", "beta2", "eps", "weight_decay")] == pytest.approx(expected, rel=1e-5)
        assert run.resolved()["derived"]["eps"]["reference"] == "x0 = 1e-08 at r0 = 32 (recipe)"
    assert [*runs_of("demo")[0].knobs] == [*Rules().given]  # without a rule, it is not one of them
    found = runs_of("demo", *words, "optimizer.method=spectral", "rules.lr=0.1")
    assert idle_settings(found) == [
        f"warning: rules.{name} without effect: optimizer.method=spectral" for name in ("beta1", "beta2", "eps")
    ]
    assert [run.recipe.optimizer.weight_decay for run in found] == pytest.approx([0.565685, 0.1], rel=1e-5)


def test_a_worker_builds_the_optimizer_that_the_recipe_names(stack):
    import torch.distributed as dist

    from rankrl.ppo.policy import factor_groups, optimizer_of
    from rankrl.ppo.strategy import AdapterOptimizer
    from rankrl.recipe.optimizer_section import Optimizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    pairs = [(*pair(2), 4.0)]
    spec = SimpleNamespace(optimizer=Optimizer("spectral", momentum=0.5))
    groups = factor_groups(pairs, 0.1, 3.0, "b")
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.1)]
    assert [group["lr"] for group in factor_groups(pairs, 0.1, 3.0, "both")] == [0.1, pytest.approx(0.3)]
    adam = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    other = optimizer_of(spec, groups, pairs)
    optimizer = AdapterOptimizer(groups, adam, 1.0, 1, other=other)
    assert optimizer.adam is other and other.param_groups[0]["momentum"] == 0.5
    assert optimizer_of(SimpleNamespace(optimizer=Optimizer()), groups, pairs) is None
    b = pairs[0][1]
    b.grad = torch.randn_like(b)
    assert optimizer.micro_step() and optimizer.parameters == [b]
    resumed = AdapterOptimizer(groups, adam, 1.0, 1, other=optimizer_of(spec, groups, pairs))
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(resumed.adam.state[b]["mean"], other.state[b]["mean"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trained=a", "trained: got 'a', allowed: both or b"),
        ("optimizer.method=muon", "optimizer.method: got 'muon', allowed: adamw or spectral"),
        ("optimizer.betas=[0.9]", "optimizer.betas: got [0.9], allowed: two numbers from 0 to below 1"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas: got [0.9, 1.0]"),
        ("optimizer.eps=0", "optimizer.eps: got 0.0, allowed: above 0 and below 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: got -1.0, allowed: from 0"),
        ("optimizer.momentum=1", "optimizer.momentum: got 1.0, allowed: from 0 to below 1"),
        ("rules.beta2=1", "rules.beta2.value: got 1.0, allowed: from 0 to below 1"),
        ("rules.eps.rule=equal_kl", "rules.eps.rule: got 'equal_kl', allowed: constant, power, table"),
        (
            "ranks=[1] optimizer.weight_decay=0.1 rules.weight_decay.rule=power rules.weight_decay.exponent=-4",
            "optimizer.weight_decay: got 104857.6",
        ),
        (
            "rules.lr.rule=measured rules.eps=1e-6",
            "rules.lr.rule: got 'measured', allowed: another rule with optimizer",
        ),
        (
            "optimizer.weight_decay=0.1 rules.weight_decay=0.2",
            "optimizer.weight_decay: got 0.1, allowed: its default: rules.weight_decay has values of its own",
        ),
        ("optimizer.method=spectral", "rules.lr.value: got None, allowed: a rate of its own"),
        ("init.method=olora_tail ranks=[300] scale=qwen3-8b", "ranks: got 300, allowed: at most 256"),
    ],
)
def test_what_cannot_be_is_refused(words, says):
    with pytest.raises(ValueError) as error:
        runs_of("demo", *words.split())
    assert str(error.value).startswith(says)


def test_what_has_no_effect_is_said():
    why = "optimizer.method=spectral"
    runs = runs_of("demo", f"{why}", "rules.lr=0.1", "optimizer.betas=[0.9,0.99]", "optimizer.eps=1e-6")
    assert idle_settings(runs) == [f"warning: optimizer.{key} without effect: {why}" for key in ("betas", "eps")]
    runs = runs_of("demo", "trained=b", "rules.lr_ratio=4", "optimizer.momentum=0.5")
    assert idle_settings(runs) == [
        "warning: optimizer.momentum without effect: optimizer.method=adamw",
        "warning: rules.lr_ratio without effect: trained=b: A has no rate, and B has rules.lr",
    ]
    assert idle_settings(runs_of("demo", "optimizer.betas=[0.9,0.99]", "optimizer.weight_decay=0.1")) == []


def test_a_frozen_a_is_planned_and_explained():
    whole, frozen, tail = (
        runs_of("demo", "ranks=[8]", *words)[0]
        for words in ((), ("trained=b",), ("trained=b", "init.method=olora_tail"))
    )
    assert whole.trainable_params == frozen.trainable_params + frozen.frozen_params == 8 * 7936
    assert (whole.frozen_params, frozen.trainable_params) == (0, 8 * 4096)
    assert (frozen.recipe.served_ranks, tail.recipe.served_ranks) == (1, 1)
    assert runs_of("demo", "init.method=olora_tail")[0].recipe.served_ranks == 2
    waits = runs_of("demo", "ranks=[8]", "trained=b", "allocation.method=greedy", "allocation.value=signal")[0]
    assert frozen.trainable_params <= waits.trainable_params < 8 * 7936  # an upper bound
    done = rankrl("explain", "recipes/demo.yaml", "ranks=[1]", "trained=b", "optimizer.weight_decay=0.1")
    assert "optimizer: adamw, betas [0.9, 0.95], eps 1e-08, weight_decay 0.1; trained: B alone" in done.stdout
