"""What may be claimed of a sweep, and how often a claim is false."""

from __future__ import annotations

import numpy as np
import pytest
from test_stats import plain

from rankrl.report.statistics.blocks import blocks
from rankrl.report.statistics.claims import (
    best_quantile,
    best_set,
    claims,
    noninferior_claims,
    of_kind,
    pair_claims,
    pair_quantile,
    positive_claims,
    tables,
)
from rankrl.report.statistics.intervals import risk_bound
from rankrl.report.statistics.limits import Limits
from rankrl.report.statistics.paired import against_reference
from rankrl.report.statistics.spread import spread

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SWEEPS = 1000
MOST_FALSE = 0.05 + 2 * 0.0069
"""5 %, and twice the Monte Carlo error of a share of that size."""
SHAPES = [(9, 3, 1), (9, 6, 1), (5, 6, 1), (3, 6, 1), (9, 6, 4)]


def drawn(means, batches, seeds, rng, sds=0.02, shared=0.01):
    """Runs of the first ranks with these mean gains.

    All share the seed's effect, and batch sizes of one rank and seed 0.3 of the noise's variance.
    """
    effect = rng.normal(0, shared, seeds)
    runs = []
    for rank, mean, sd in zip(RANKS, means, np.broadcast_to(sds, len(means)), strict=False):
        own = rng.normal(0, sd * 0.3**0.5, seeds)
        for batch in range(batches):
            gains = mean + effect + own + rng.normal(0, sd * 0.7**0.5, seeds)
            runs += plain(gains.tolist(), rank, 16 * 2**batch)
    return runs


def subjects(found, kind):
    return [row["subject"]["rank"] for row in of_kind(found, kind)]


def test_a_difference_that_stands_out_is_claimed_with_its_interval():
    rng = np.random.default_rng(1)
    runs = drawn([0.0, 0.2, 0.201], 1, 6, rng, 0.01, 0.05)
    found = claims(runs)
    below = of_kind(found, "below")
    assert [(row["subject"]["rank"], row["than"]["rank"]) for row in below] == [(1, 2), (1, 4)]
    assert all(row["family"] == 3 and row["ci95"][0] < row["estimate"] < row["ci95"][1] < 0 for row in below)
    known = best_set(found, [{"arm": "", "rank": rank} for rank in (1, 2, 4)])
    assert [[row["rank"] for row in known[side]] for side in ("members", "excluded")] == [[2, 4], [1]]


def test_the_error_of_the_base_widens_what_is_said_of_gains_and_no_difference():
    """Gains of about .02 are above the base, unless it is known to .02 only."""
    runs = [run for rank in (1, 2) for run in plain([0.015, 0.02, 0.025, 0.018, 0.022, 0.02], rank, 16)]
    exact, rough = claims(runs), claims(runs, base_error=0.02)
    assert subjects(exact, "above") == [1, 2] and subjects(rough, "above") == []
    (sure,), (unsure,) = ([row for row in found if row["kind"] == "above"][:1] for found in (exact, rough))
    halves = [row["ci95"][1] - row["estimate"] for row in (sure, unsure)]
    assert halves == pytest.approx([0.004399, 0.063420], rel=1e-3)  # errors .00139 and (.00139^2 + .02^2)^.5
    assert [row for row in exact if row["kind"] != "above"] == [row for row in rough if row["kind"] != "above"]


def test_kinds_families_and_bounds():
    """Two seeds say little, but never more than a gain can be."""
    runs = [run for rank in (1, 8, 32) for run in plain([0.1 + rank / 1000, 0.3 - rank / 1000], rank)]
    found = claims(runs)
    kinds = [row["kind"] for row in found]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "below": 3,
        "above": 3,
        "noninferior": 3,
        "equivalent": 2,
        "risk_below": 3,
    }
    assert all(row["family"] == 3 for row in found)
    assert all(-1 <= row["ci95"][0] <= row["ci95"][1] <= 1 for row in found)
    assert not any(row["supported"] for row in found)
    assert [(row["subject"]["rank"], row["than"]["rank"]) for row in found if row["kind"] == "equivalent"] == [
        (1, 32),
        (8, 32),
    ]


def test_one_seed_or_equal_gains_support_nothing():
    assert [row["kind"] for row in claims(plain([0.1], 1) + plain([0.2], 32))] == ["risk_below"] * 2
    assert {row["kind"] for row in claims(plain([0.1] * 3, 1) + plain([0.2] * 3, 32))} == {"risk_below"}


def test_one_kind_alone_makes_the_claims_of_all():
    runs = drawn([0.1, 0.11, 0.2], 2, 6, np.random.default_rng(6))
    for kind in ("below", "above", "noninferior"):
        assert made(kind, runs) == [row for row in claims(runs) if row["kind"] == kind]


def test_arms_are_compared_at_one_rank_and_ranks_in_one_arm():
    """And arms over all their ranks, as rank None: all in one family."""
    rng = np.random.default_rng(2)
    runs = [run | {"arm": arm} for arm in ("off", "on") for run in drawn([0.1, 0.1], 1, 4, rng)]
    found = [row for row in claims(runs) if row["kind"] == "below"]
    pairs = [(row["subject"], row["than"]) for row in found]
    assert len(pairs) == 5 and {row["family"] for row in found} == {5}
    assert all(left["arm"] == right["arm"] or left["rank"] == right["rank"] for left, right in pairs)
    assert [left["arm"] != right["arm"] for left, right in pairs if left["rank"] is None] == [True]


def test_an_unbalanced_sweep_compares_what_both_have():
    """Rank 1 lacks the batch size at which all gain more. Its level is not moved by that, and the
    difference is that of the runs that both have."""
    runs = plain([0.1, 0.12, 0.11], 1) + plain([0.1, 0.12, 0.11], 32) + plain([0.5, 0.52, 0.51], 32, 128)
    table = blocks(runs)
    assert table.difference_GG[0, 1] == pytest.approx(0, abs=1e-12)
    assert table.common_GG.tolist() == [[3, 3], [3, 3]]
    assert table.level_GS[0].tolist() == pytest.approx([0.1, 0.12, 0.11])
    assert table.level_GS[1].tolist() == pytest.approx([0.3, 0.32, 0.31])


def test_nothing_is_claimed_in_favour_of_survivors():
    """Half of rank 1's runs diverged without a score. Its mean is that of the others."""
    rng = np.random.default_rng(0)
    whole = drawn([0.2, 0.2, 0.0], 1, 12, rng, 0.001, 0.005)
    lost = {"gain": None, "final_score": None, "status": "diverged"}
    runs = [run | (lost if run["rank"] == 1 and run["seed"] % 2 else {}) for run in whole]
    found = {kind: of_kind(claims(runs), kind) for kind in ("below", "above", "noninferior", "equivalent")}
    assert subjects(claims(whole), "noninferior") == [1, 2] and subjects(claims(runs), "noninferior") == [2]
    assert subjects(claims(whole), "above") == [1, 2] and subjects(claims(runs), "above") == [2]
    assert [(row["subject"]["rank"], row["than"]["rank"]) for row in found["below"]] == [(4, 2)]
    assert not found["equivalent"]


def test_a_cell_with_few_seeds_takes_no_part():
    """Its noise is not known: at batch 128 it may be five times that of the others."""
    rng = np.random.default_rng(9)
    runs = drawn([0.1] * 4, 3, 6, rng)
    few = [run for run in runs if run["batch_size"] < 64 or run["seed"] < 3]
    table = blocks(few)
    assert table.short == 4 and np.isfinite(table.gain_GBS).sum() == 4 * 2 * 6
    assert blocks([run for run in runs if run["batch_size"] < 64 or run["seed"] < 4]).short == 0


def test_a_noisy_subject_keeps_its_own_variance():
    """And a quiet one is drawn up: of few seeds it may be quiet by chance.

    A quiet subject's variance is not that of the noisy one's share in the mean of a seed.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (9, 6)) * np.array([0.1] + [0.01] * 8)[:, None]
    runs = [run for rank, gains in zip(RANKS, noise, strict=True) for run in plain(gains, rank)]
    variance = blocks(runs).spread.variance_G
    own = noise.var(1, ddof=1)
    assert variance[0] == pytest.approx(own[0], rel=0.1)
    assert own[1:].mean() == pytest.approx(8e-5, rel=0.1)
    assert variance[1:].mean() == pytest.approx(8e-5, rel=0.1) and variance[1:].min() > 1.5 * own[1:].min()
    assert not blocks(runs).spread.alike


def test_variances_that_look_alike_are_pooled():
    """Two ranks have one paired variance: that of the differences, at n - 1 degrees of freedom."""
    x, y = np.random.default_rng(1).normal(0, 0.02, (2, 6))
    table = blocks(plain(x, 1) + plain(y, 32))
    assert table.spread.alike and table.freedom_GG[0, 1] == 5
    assert table.error_GG[0, 1] == pytest.approx((x - y).std(ddof=1) / 6**0.5)


def test_runs_of_a_seed_count_as_their_likeness_says():
    """Four batch sizes: noise that they share counts four times, noise of their own does not."""
    rng = np.random.default_rng(2)
    shared, own = rng.normal(0, 0.02, (9, 1, 40)), rng.normal(0, 0.02, (9, 4, 40))
    together, apart = spread(np.broadcast_to(shared, (9, 4, 40)).copy()), spread(own)
    assert together.correlation == pytest.approx(1.0) and apart.correlation < 0.05
    assert together.freedom == pytest.approx(apart.freedom / 4, rel=0.05)


def test_the_quantile_for_the_best():
    """Dunnett's one-sided 5 % points. For one comparison it is that of t; draws give 2.56, 2.43."""
    assert [round(best_quantile(k, v), 2) for k, v in ((1, 20), (2, 10), (8, 20), (8, 60))] == [1.72, 2.15, 2.56, 2.44]


def test_quantiles():
    """Tukey's for nine subjects; Bonferroni's for the few pairs of many subjects."""
    assert pair_quantile(9, 36, 40) == pytest.approx(3.28, abs=0.02)
    assert pair_quantile(22, 20, 40) < pair_quantile(22, 231, 40)
    assert [round(risk_bound(0, n, 1), 4) for n in (28, 29)] == [0.1015, 0.0981]


def share(kind, means, wrong, shape, sds=0.02):
    """Share of sweeps in which a false claim of a kind is supported; `wrong`: its subjects."""
    _, seeds, batches = shape
    rng = np.random.default_rng(3)
    hits = [
        bool({*subjects(made(kind, drawn(means, batches, seeds, rng, sds)), kind)} & {*wrong}) for _ in range(SWEEPS)
    ]
    return np.mean(hits)


def made(kind, runs):
    """The claims of one kind, without the cost of the others."""
    found = tables(runs)
    if kind == "below":
        return pair_claims(found)
    return positive_claims(found.ranks) if kind == "above" else noninferior_claims(found, Limits().margin)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_ranks_are_called_below_in_at_most_5_percent_of_sweeps(shape):
    assert share("below", [0.1] * shape[0], RANKS, shape) <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_so_also_where_one_rank_is_four_times_as_noisy(shape):
    sds = [0.08] + [0.02] * (shape[0] - 1)
    assert share("below", [0.1] * shape[0], RANKS, shape, sds) <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loss_of_the_margin_is_called_non_inferior_in_at_most_5_percent(shape):
    *others, _ = RANKS[: shape[0]]
    means = [0.1 - Limits().margin] * len(others) + [0.1]
    assert share("noninferior", means, others, shape) <= MOST_FALSE
    assert share("above", [0.0] * shape[0], RANKS, shape) <= MOST_FALSE


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 6, 1), (9, 3, 1)])
def test_a_loss_of_the_margin_is_shown_at_the_promised_seeds(shape):
    """Each sweep promises, a second one keeps it: in 75 to 90 % rank 1 is shown to be below.

    The Monte Carlo error of 150 draws is 3.3 points.
    """
    ranks, seeds, batches = shape
    rng, means, kept = np.random.default_rng(8), [0.09] + [0.1] * (ranks - 1), []
    for _ in range(150):
        row, *_ = against_reference(tables(drawn(means, batches, seeds, rng, 0.01)))
        again = of_kind(claims(drawn(means, batches, row["seeds_needed"], rng, 0.01)), "below")
        kept.append(any((c["subject"]["rank"], c["than"]["rank"]) == (1, RANKS[ranks - 1]) for c in again))
    assert 0.75 - 2 * 0.033 < np.mean(kept) < 0.9 + 2 * 0.033


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 2, 3])
def test_an_unfinished_sweep_claims_nothing_of_equal_ranks(last):
    """Four batch sizes; of the noisiest one only the first seeds have ended."""
    rng, false = np.random.default_rng(10), []
    for _ in range(500):
        runs = [run for batch in range(3) for run in moved(drawn([0.1] * 5, 1, 6, rng, 0.008), batch)]
        runs += moved([run for run in drawn([0.1] * 5, 1, 6, rng, 0.04) if run["seed"] < last], 3)
        false.append(bool(of_kind(made("below", runs), "below")))
    assert np.mean(false) <= 0.05 + 2 * 0.0098


def moved(runs, batch):
    return [run | {"batch_size": 16 * 2**batch} for run in runs]
