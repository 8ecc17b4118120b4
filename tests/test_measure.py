"""Measured subspaces on cases with known answers: planted gradients, pure noise, exact SVDs, shares
of workers, peak memory."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankrl.adapter.eva import eva
from rankrl.adapter.factors import gram_schmidt, orthonormal_rows
from rankrl.adapter.gradient import policy_gradient
from rankrl.adapter.sketch import LowRankMap, nystrom, permuted, random_basis, reproducible, whitening
from rankrl.adapter.watch import Batch, Samples, walk_activations, walk_gradients
from rankrl.recipe.init_section import Init

ONE = lambda tensor: tensor  # noqa: E731
MODULE = "layers.0.q_proj"
PROMPTS, ANSWERS, LENGTH = 64, 4, 24


def samples_of(rng, prompts=PROMPTS, answers=ANSWERS):
    """RLOO advantages of random verdicts. Every prompt has right and wrong answers; the even
    prompts are half a."""
    right = torch.tensor(
        np.stack([rng.permutation([1, 0] * (answers // 2)) for _ in range(prompts)]), dtype=torch.float32
    )
    advantage = right - (right.sum(1, keepdim=True) - right) / (answers - 1)
    group_N = torch.arange(prompts).repeat_interleave(answers)
    return Samples(advantage.flatten(), group_N, group_N % 2, torch.full((prompts * answers,), LENGTH))


def batches_of(samples, rows, size=8):
    """Batches of the samples `rows`, without padding."""
    parts = [torch.tensor(rows[i : i + size]) for i in range(0, len(rows), size)]
    ones = [torch.ones(len(part), LENGTH) for part in parts]
    return [
        Batch(one, one, one, part, samples.half_N[part], samples.advantage_N[part], torch.ones(len(part)))
        for part, one in zip(parts, ones, strict=True)
    ]


def planted(seed, d_in, d_out, signals, noise=0.3):
    """(samples, x [N, T, d_in], delta [N, T, d_out], V [R, d_in]).

    x and delta are noise with a planted gradient along the directions (u_i, v_i).
    """
    rng = np.random.default_rng(seed)
    samples = samples_of(rng)
    n = len(samples.group_N)
    draw = lambda *shape: torch.tensor(rng.normal(size=shape), dtype=torch.float32)  # noqa: E731
    x, delta = draw(n, LENGTH, d_in), noise * draw(n, LENGTH, d_out)
    v, u = orthonormal_rows(seed, "v", len(signals), d_in), orthonormal_rows(seed, "u", len(signals), d_out)
    along = draw(n, LENGTH, len(signals))
    x = x - (x @ v.T) @ v + along @ v
    delta = delta + samples.advantage_N[:, None, None] * ((along * torch.tensor(signals)) @ u)
    return samples, x, delta, v


def walk_over(x, delta, batches):
    """A `Walk` over given activations `x` and gradients `delta`."""

    def walk(see):
        for batch in batches:
            see(MODULE, batch, x[batch.row_B], delta[batch.row_B])

    return walk


def measured(method, case, shape, rank, init=None, reduce=ONE, workers=1, principal=None):
    samples, x, delta, _ = case
    init = init or Init("pg_subspace" if method is policy_gradient else "eva")
    principal = {MODULE: torch.eye(shape[0])[:rank] if principal is None else principal}
    batches = batches_of(samples, range(len(samples.group_N)))
    return method(walk_over(x, delta, batches), {MODULE: shape}, init, rank, 0, principal, samples, reduce)


def exact_directions(case):
    """Right singular vectors of the gradient of half a, which is computed as a full matrix."""
    samples, x, delta, _ = case
    weight_N = samples.advantage_N * (samples.half_N == 0)
    gradient = torch.einsum("n,nto,nti->oi", weight_N.double(), delta.double(), x.double())
    return torch.linalg.svd(gradient)[2].float()


def angles(rows, expected):
    """Principal angles [degrees] between two row spaces, the largest first."""
    cosines = np.linalg.svd((rows @ expected.T).double().numpy(), compute_uv=False)
    return np.degrees(np.arccos(np.clip(cosines, 0, 1)))[::-1]


def test_a_planted_gradient_is_recovered_in_order():
    signals = [3.0, 2.0, 1.0]
    case = planted(0, 80, 60, signals)
    start = measured(policy_gradient, case, (80, 60), 8)
    facts = start.diagnostics[MODULE]
    assert facts["kept"] == 3
    rows, v = start.rows[MODULE], case[3]
    assert angles(rows[:3], v)[0] < 15
    exact = exact_directions(case)
    assert angles(rows[:3], exact[:3])[0] < 1
    for i in range(3):
        assert angles(rows[i : i + 1], exact[i : i + 1])[0] < 2
    assert start.values[MODULE][:3] == sorted(start.values[MODULE], reverse=True)[:3]
    assert start.values[MODULE][0] > 1.3 * start.values[MODULE][1] > 0 == start.values[MODULE][3]
    assert (rows @ rows.T - torch.eye(8)).abs().max() < 1e-5
    assert facts["halves_agreement"] > 0.8
    assert 0.3 < facts["captured_energy"] <= 1.2
    assert torch.equal(measured(policy_gradient, case, (80, 60), 8).rows[MODULE], rows)


def test_noise_gives_no_direction_but_in_one_case_of_twenty():
    kept = [
        measured(policy_gradient, planted(seed, 40, 30, [0.0]), (40, 30), 4).diagnostics[MODULE]["kept"]
        for seed in range(20)
    ]
    assert sum(k > 0 for k in kept) <= 3  # binomial(20, 0.05) exceeds this in 1.6 % of cases
    start = measured(
        policy_gradient, planted(3, 40, 30, [0.0]), (40, 30), 4, Init("pg_subspace", fallback="orthonormal")
    )
    if not start.diagnostics[MODULE]["kept"]:
        assert torch.allclose(start.rows[MODULE], orthonormal_rows(0, MODULE, 4, 40), atol=1e-6)


def test_an_outlier_that_one_half_alone_has_is_not_kept():
    samples, x, delta, _ = planted(1, 40, 30, [0.0])
    x[0], delta[0] = 0.0, 0.0
    x[0, :, 7], delta[0, :, 5] = 50.0, 50.0
    start = measured(policy_gradient, (samples, x, delta, None), (40, 30), 4)
    assert start.rows[MODULE][:, 7].abs().max() < 0.9


def test_off_principal_rows_avoid_the_top_directions():
    case = planted(0, 80, 60, [3.0, 2.0])
    avoid = case[3][:1]
    start = measured(policy_gradient, case, (80, 60), 6, Init("pg_subspace", off_principal=1), principal=avoid)
    rows = start.rows[MODULE]
    assert (rows @ avoid.T).abs().max() < 1e-5
    assert angles(rows[:1], case[3][1:2])[0] < 20


def test_fisher_whitens_by_the_kronecker_factors():
    """A direction whose input is ten times as large has ten times the gradient, but costs a hundred
    times the KL."""
    samples, x, delta, v = planted(0, 50, 50, [2.0, 2.0])
    case = (samples, LowRankMap(v[:1].T, torch.tensor([10.0]))(x), delta, v)
    plain = measured(policy_gradient, case, (50, 50), 4)
    fisher = measured(policy_gradient, case, (50, 50), 4, Init("pg_subspace", fisher=True, oversample=46))
    assert plain.values[MODULE][0] > 5 * plain.values[MODULE][1] > 0
    assert 0 < fisher.values[MODULE][0] < 2 * fisher.values[MODULE][1]
    assert fisher.fisher[MODULE] == sorted(fisher.fisher[MODULE], reverse=True) and fisher.fisher[MODULE][-1] > 0
    root_x, root_delta = (inverse_root(seen) for seen in case[1:3])
    white = (samples, case[1] @ root_x, delta @ root_delta, v)
    expected = exact_directions(white)[:2] @ root_x
    assert angles(fisher.rows[MODULE][:2], gram_schmidt(expected))[0] < 2


def inverse_root(seen):
    """C^(-1/2) of the second moments of [N, T, d], damped."""
    flat = seen.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    return (vectors * (values + 1e-3 * values.mean()).rsqrt() @ vectors.T).float()


@pytest.mark.parametrize(("method", "init"), [(eva, Init("eva")), (policy_gradient, Init("pg_subspace", fisher=True))])
def test_two_workers_measure_what_one_does(method, init):
    """Each worker has half of the batches. Both take the sums in the same order."""
    from threading import Barrier, Thread

    samples, x, delta, _ = case = planted(0, 40, 30, [3.0, 2.0])
    whole = measured(method, case, (40, 30), 4, init)
    barrier, shares, results = Barrier(2), {}, {}

    def worker(number):
        def reduce(tensor):
            shares[number] = tensor
            barrier.wait()
            total = shares[0] + shares[1]
            barrier.wait()
            return total

        batches = batches_of(samples, range(number, len(samples.group_N), 2))
        principal = {MODULE: torch.eye(40)[:4]}
        results[number] = method(
            walk_over(x, delta, batches), {MODULE: (40, 30)}, init, 4, 0, principal, samples, reduce
        )

    threads = [Thread(target=worker, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert torch.equal(results[0].rows[MODULE], results[1].rows[MODULE])
    assert (whole.rows[MODULE] - results[0].rows[MODULE]).abs().max() < 1e-4
    assert results[0].values[MODULE] == pytest.approx(whole.values[MODULE], rel=1e-4)


INITS = {"gradient": Init("pg_subspace"), "fisher": Init("pg_subspace", fisher=True), "eva": Init("eva")}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation has made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("init", INITS.values(), ids=INITS)
def test_memory_grows_with_the_sum_of_the_sides_and_never_with_their_product(init):
    largest, rank, method = {}, 2, eva if init.method == "eva" else policy_gradient
    for d in (64, 4096):
        samples = samples_of(np.random.default_rng(0), prompts=4)
        n = len(samples.group_N)
        case = (samples, torch.randn(n, LENGTH, d), torch.randn(n, LENGTH, d), None)
        with Largest() as mode:
            principal = torch.nn.functional.one_hot(torch.arange(2), d).float()
            measured(method, case, (d, d), rank, init, principal=principal)
        largest[d] = mode.elements
    k, batch_tokens = rank + init.oversample, 8 * LENGTH
    assert largest[4096] <= 4096 * max(2 * k + 2, batch_tokens)
    assert largest[4096] <= 64 * largest[64]  # linear in the sides


def test_eva_finds_the_leading_directions_of_the_activations():
    rng = np.random.default_rng(0)
    samples = samples_of(rng)
    scale = torch.logspace(1, -1, 50)
    mix = orthonormal_rows(0, "mix", 50, 50)
    x = torch.tensor(rng.normal(size=(len(samples.group_N), LENGTH, 50)), dtype=torch.float32) * scale @ mix
    start = measured(eva, (samples, x, x, None), (50, 50), 5)
    _, singular, vt = np.linalg.svd(x.flatten(0, 1).numpy(), full_matrices=False)
    assert angles(start.rows[MODULE], torch.tensor(vt[:5]))[0] < 2
    assert start.values[MODULE] == pytest.approx(singular[:5] ** 2 / (singular**2).sum(), rel=0.01)
    assert start.diagnostics[MODULE]["captured_energy"] == pytest.approx(
        (singular[:5] ** 2).sum() / (singular**2).sum(), rel=0.01
    )


def test_hooks_see_the_gradient_that_autograd_forms():
    """In a frozen network, the weighted sum of delta x^T over samples is the gradient of the
    weighted sum."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).requires_grad_(False)
    x, weight = torch.randn(4, 3, 5), torch.tensor([1.0, -2.0, 0.5, 1.0])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    batch = Batch(x, mask, mask, torch.arange(4), torch.zeros(4), weight, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    policy = lambda batch: net(batch.sequences_BT).square().sum(2) * batch.action_mask_BA  # noqa: E731
    formed = {"0": torch.zeros(7, 5), "2": torch.zeros(3, 7)}

    def see(name, batch, x, delta):
        formed[name] += torch.einsum("b,bto,bti->oi", batch.advantage_B, delta, x)

    linears = {name: net.get_submodule(name) for name in formed}
    walk_gradients(policy, linears, [batch], see)
    net.requires_grad_(True)
    (policy(batch).sum(1) * weight * batch.real_B).sum().backward()
    for name, linear in linears.items():
        assert torch.allclose(formed[name], linear.weight.grad, atol=1e-5)
        assert not linear._forward_hooks
    seen = []
    walk_activations(policy, linears, [batch], lambda name, batch, x, _: seen.append((name, x.shape)))
    assert seen == [("0", (4, 3, 5)), ("2", (4, 3, 7))]


def test_advantages_are_shuffled_within_their_prompts():
    group_N, advantage_N = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([10.0, 1.0, 20.0, 2.0, 30.0])
    null_PN = permuted(advantage_N, group_N, 50, 0)
    for row in null_PN:
        assert sorted(row[group_N == 0].tolist()) == [1, 2] and sorted(row[group_N == 1].tolist()) == [10, 20, 30]
    assert len({tuple(row.tolist()) for row in null_PN}) == 12


def test_a_signal_beyond_its_permutations_is_reproducible():
    rng = np.random.default_rng(0)
    samples = samples_of(rng)
    noise = torch.tensor(rng.normal(size=(len(samples.group_N), 2)), dtype=torch.float32)
    contribution = noise + torch.outer(samples.advantage_N, torch.tensor([0.0, 1.5]))
    null = permuted(samples.advantage_N, samples.group_N, 400, 0)
    signal, keep = reproducible(contribution, samples.advantage_N, null)
    assert keep.tolist() == [False, True]
    assert signal == pytest.approx((samples.advantage_N @ contribution).numpy(), rel=1e-5)
    assert not reproducible(torch.zeros(len(samples.group_N), 2), samples.advantage_N, null)[1].any()


def test_nystrom_and_whitening_are_exact_where_the_rank_fits():
    v = orthonormal_rows(0, "v", 3, 20)
    c = v.T @ torch.diag(torch.tensor([9.0, 4.0, 1.0])) @ v
    omega = random_basis(0, "m", "i", 20, 6)
    found, values = nystrom(c @ omega, omega)
    assert values[:4].tolist() == pytest.approx([9, 4, 1, 0], abs=1e-4)
    assert angles(found.T[:3], v)[0] < 0.1
    full = c + 0.5 * torch.eye(20)
    vectors, values = nystrom(full @ torch.eye(20), torch.eye(20))
    white = whitening(vectors[:, :3], values[:3], float(full.trace()))
    assert (
        white(white(full)).sub(torch.eye(20)).abs().max() < 0.6
    )  # 0.5 of damping against 9.5, 4.5, 1.5 leaves less than that
