"""Averages of adapters: by hand, against full matrices, and what a report says of them."""

from __future__ import annotations

import pytest
from conftest import runs_of

from rankrl.recipe.average_section import Average
from rankrl.recipe.cost import train_bytes
from rankrl.report.statistics.averages import averages
from rankrl.report.words import _averages


def products(pairs):
    return [b.double() @ a.double() for a, b in pairs]


def drawn(count: int, rank: int, seed: int = 0):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rank, 5, generator=generator), torch.randn(4, rank, generator=generator)) for _ in range(count)
    ]


def mean(snapshots, rank):
    from rankrl.adapter.average import average

    return average("mean", dict(enumerate(snapshots)), rank)


def test_the_mean_of_two_rank_1_updates_by_hand(stack):
    """(8, 0) along one direction and (0, 2) along another: their mean is diag(4, 1), of rank 2."""
    import torch

    e = torch.eye(2)
    snapshots = [(e[:1], 8 * e[:, :1]), (e[1:], 2 * e[:, 1:])]
    a, b = mean(snapshots, 1)
    assert torch.allclose(b @ a, torch.tensor([[4.0, 0.0], [0.0, 0.0]]), atol=1e-6)  # the better half
    a, b = mean(snapshots, 2)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([4.0, 1.0])), atol=1e-6)
    assert a.norm() == pytest.approx(float(b.norm()))  # shared out evenly


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_mean_is_the_truncated_svd_of_the_full_matrix(stack, rank):
    import torch

    snapshots = drawn(3, 2)
    a, b = mean(snapshots, rank)
    u, s, v = torch.linalg.svd(torch.stack(products(snapshots)).mean(0))
    best = u[:, :rank] * s[:rank] @ v[:rank]
    assert (a.shape, b.shape) == ((rank, 5), (4, rank)) and torch.allclose(b.double() @ a.double(), best, atol=1e-5)


@pytest.mark.parametrize("method", ["mean", "trajectory"])
def test_an_average_of_equal_adapters_is_the_adapter_at_any_rank(stack, method):
    import torch

    from rankrl.adapter.average import average

    (pair,) = drawn(1, 2)
    a, b = average(method, {1: pair, 2: pair, 3: pair}, 8)  # more than the matrix has: filled up with zeros
    assert a.shape == (8, 5) and torch.allclose(b.double() @ a.double(), products([pair])[0], atol=1e-5)
    zero = (torch.ones(2, 5), torch.zeros(4, 2))
    a, b = average(method, {1: zero, 2: zero}, 2)
    assert not (b @ a).any() and torch.isfinite(a).all()


def test_a_trajectory_by_hand(stack):
    """Along one direction 1, 2, 6 at steps 10, 20, 30: the line has 5.5 at the last."""
    import torch

    from rankrl.adapter.average import average, line_at

    direction = torch.tensor([[0.6, 0.8]])
    snapshots = {
        10 * size: (direction, along * torch.tensor([[1.0], [0.0], [0.0]]))
        for size, along in ((1, 1.0), (2, 2.0), (3, 6.0))
    }
    a, b = average("trajectory", snapshots, 2)
    assert torch.allclose(b @ a, 5.5 * torch.tensor([[0.6, 0.8], [0, 0], [0, 0]]), atol=1e-5)
    assert line_at([3.0], [7.0], 3.0) == 7.0


def test_a_trajectory_is_that_of_the_full_matrices(stack):
    """The leading singular pair of the flattened snapshots, and a line through its course."""
    import numpy as np
    import torch

    from rankrl.adapter.average import average

    snapshots, times = drawn(4, 2, seed=3), [5, 10, 15, 20]
    flat = torch.stack(products(snapshots)).flatten(1).numpy()
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    line = np.polynomial.Polynomial.fit(times, u[:, 0] * s[0], 1)
    wanted = torch.from_numpy(line(20) * v[0]).view(4, 5)
    a, b = average("trajectory", dict(zip(times, snapshots, strict=True)), 4)
    assert torch.allclose(b.double() @ a.double(), wanted, atol=1e-5)


def test_when_snapshots_are_taken():
    assert Average().steps(60) == ()
    assert Average("mean").steps(60) == (47, 49, 51, 52, 54, 56, 58, 60)  # of the last 15
    assert Average("trajectory").steps(80) == (10, 20, 30, 40, 50, 60, 70, 80)
    assert Average("mean", share=0.5, snapshots=2).steps(100) == (75, 100)
    assert Average("mean").steps(3) == (2, 3) and Average("mean").steps(1) == (1,)


def test_snapshots_take_no_memory_of_a_gpu():
    plain, kept = (runs_of("demo", "ranks=[1]", "seeds=[0]", *words)[0] for words in ((), ("average.method=mean",)))
    assert len(kept.recipe.average.steps(kept.recipe.steps)) == 8 and train_bytes(kept) == train_bytes(plain)


def result(seed: int, last: float, average: float | None, arm: str = "", status: str = "finished") -> dict:
    scores = {"base_score": 0.3, "final_score": 0.3 + last, "average_score": None if average is None else 0.3 + average}
    return {"arm": arm, "rank": 1, "seed": seed, "status": status, "gain": last, **scores}


def test_differences_and_risks_by_hand():
    rows = averages([result(0, 0.10, 0.12), result(1, -0.02, 0.01), result(2, 0.05, 0.05), result(3, 0.2, None)])
    (row,) = rows
    assert (row["n_runs"], row["n_seeds"], row["negative_runs"], row["average_negative_runs"]) == (3, 3, 1, 0)
    assert row["mean_difference"] == pytest.approx(0.05 / 3)
    assert row["difference_ci95"] == pytest.approx([-0.0213, 0.0546], abs=1e-4)  # 4.3027 * .015275 / sqrt 3
    assert row["lower_risk_p"] == 0.5 and not row["lowers_risk"]  # one run that it mended is a coin
    assert averages([result(0, 0.1, None)]) == []
    mended = averages([result(seed, -0.1, 0.1) for seed in range(5)])
    assert mended[0]["lower_risk_p"] == pytest.approx(1 / 32) and mended[0]["lowers_risk"]
    diverged = averages([result(0, 0.1, 0.1), result(1, 0.2, 0.1), result(2, -0.3, None, status="diverged")])
    assert (diverged[0]["negative_runs"], diverged[0]["average_negative_runs"], diverged[0]["n_runs"]) == (1, 1, 2)
    one_seed = averages([result(0, -0.1, 0.1) for _ in range(5)])
    assert one_seed[0]["lower_risk_p"] == 0.5  # runs of a seed are one
    both = averages([result(seed, -0.1, 0.1, arm) for seed in range(5) for arm in ("a", "b")])
    assert not any(row["lowers_risk"] for row in both)  # 1/32 is above 1/40


def test_the_sentence_claims_no_more_than_is_shown():
    rows = averages([result(0, 0.10, 0.12), result(1, -0.02, 0.01), result(2, 0.05, 0.05)])
    (said,) = _averages({"averages": rows})
    assert said.startswith(
        "Rank 1: averaged adapters score +0.017 [-0.021, +0.055] against the last ones (3 runs on 3 seeds)"
    )
    assert said.endswith("0 of 3 are below the base, 1 of the last ones: that averaging lowers the risk is not shown.")
    (said,) = _averages({"averages": averages([result(seed, -0.1, 0.1, "on") for seed in range(5)])})
    assert said.startswith("Arm on, rank 1: averaged") and said.endswith("fewer, which is shown.")
