"""The rules of rank, with literal expected numbers."""

import pytest
from conftest import runs_of

from rankrl.recipe import rules


@pytest.mark.parametrize(
    ("rank", "multiplier"),
    [(1, 0.474), (2, 0.612), (4, 0.750), (8, 0.866), (16, 0.949), (32, 1.0), (64, 1.029), (256, 1.052)],
)
def test_equal_kl_with_c_4_gives_the_published_multipliers(rank, multiplier):
    assert rules.equal_kl(rank, 1.0, 32, 4.0) == pytest.approx(multiplier, abs=5e-4)


def test_equal_kl_without_noise_does_not_depend_on_rank():
    assert [rules.equal_kl(r, 3e-4, 32, 0.0) for r in (1, 32, 256)] == [3e-4, 3e-4, 3e-4]


@pytest.mark.parametrize(("exponent", "alphas"), [(0, [32, 32, 32]), (0.5, [8, 32, 64]), (1, [2, 32, 128])])
def test_alpha_exponents_are_constant_rslora_and_constant_scale(exponent, alphas):
    assert [rules.power(r, 32, 32, exponent) for r in (2, 32, 128)] == pytest.approx(alphas)


def test_max_norm_follows_the_gradient_norm():
    assert rules.gradient_scale(1, 1.0, 32, alpha=32, alpha0=32) == pytest.approx(32**0.5)
    assert rules.gradient_scale(1, 1.0, 32, alpha=1, alpha0=32) == pytest.approx(32**-0.5)


def test_warmup_is_longer_at_low_rank():
    assert [rules.warmup_by_rank(r, 0.03) for r in (1, 4, 6, 8, 32)] == pytest.approx([0.1, 0.1, 0.065, 0.03, 0.03])


def test_an_explicit_value_wins_over_every_rule():
    for run in runs_of("low_rank", "rules.lr=1e-4", "rules.max_norm=0.5"):
        assert run["lr"] == 1e-4
        assert run["max_norm"] == 0.5


def test_rules_off_give_one_value_for_all_ranks():
    runs = runs_of("baseline")
    assert len(runs) == 216
    for knob in runs[0].knobs:
        assert len({run[knob] for run in runs}) == 1, knob


def test_a_table_rule_reads_its_rank():
    runs = runs_of("demo", "rules.lr.rule=table", "rules.lr.table={1: 0.1, 8: 0.2, 32: 0.3}")
    assert {run.rank: run["lr"] for run in runs} == {1: 0.1, 8: 0.2, 32: 0.3}


def test_explain_names_formula_reference_and_source():
    knob = runs_of("low_rank", "ranks=[1]")[0].knobs["lr"]
    assert knob.rule == "equal_kl"
    assert knob.formula == "x0 sqrt((1 + 4/r0) / (1 + 4/r))"
    assert "at r0 = 32 (scale)" in knob.reference
    assert "LoRA Without Regret" in knob.source
