"""The rules of rank, with literal expected numbers."""

from dataclasses import fields, replace

import pytest
from conftest import runs_of

from rankrl.recipe import plan as plan_module
from rankrl.recipe import rules
from rankrl.recipe.allocation import allocation_table, module_shapes
from rankrl.recipe.rules_section import OPTIONS, Rule, Rules


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


def test_by_default_every_rank_has_the_hyperparameters_that_were_measured_to_work():
    for recipe in ("demo", "low_rank", "seeds", "ablate_init", "ablate_allocation"):
        for run in runs_of(recipe):
            assert (run["alpha"], run["lr"], run["lr_ratio"], run["max_norm"], run["warmup"]) == (16, 1e-3, 1, 1, 0.03)
            assert {knob.rule for knob in run.knobs.values()} == {"constant"}
    assert {rule.rule for rule in Rules().given.values()} == {"constant"}


def test_equal_kl_with_the_c_that_was_measured():
    runs = runs_of("low_rank", "ranks=[1,4,32,256]", "rules.lr.rule=equal_kl", "rules.lr.c=0.59")
    rates = {run.rank: run["lr"] for run in runs}
    assert rates == pytest.approx({1: 8.003e-4, 4: 9.422e-4, 32: 1e-3, 256: 1.008e-3}, rel=1e-3)
    named = (
        r"rules\.lr\.c: got None, allowed: 0 to 1000000: rule 'equal_kl' needs it \(0\.59 was measured at nano; 0 makes"
    )
    with pytest.raises(ValueError, match=named) as refused:
        runs_of("demo", "rules.lr.rule=equal_kl")
    assert "\n" not in str(refused.value)


def test_explain_names_formula_reference_and_source():
    knob = runs_of("low_rank", "ranks=[1]", "rules.lr.rule=equal_kl", "rules.lr.c=4")[0].knobs["lr"]
    assert knob.rule == "equal_kl"
    assert knob.formula == "x0 sqrt((1 + 4/r0) / (1 + 4/r))"
    assert "at r0 = 32 (scale)" in knob.reference
    assert "LoRA Without Regret" in knob.source


def test_every_row_names_known_knobs_and_options_that_are_fields():
    assert {option for row in rules.RULES.values() for option in row.options} == {*OPTIONS}
    assert {knob for row in rules.RULES.values() for knob in row.knobs} <= {knob.name for knob in fields(Rules)}


def test_rules_without_a_reference_rank_or_value_refuse_one():
    takes = {name: row.takes for name, row in rules.RULES.items()}
    assert takes["constant"] == ("x0",)
    assert takes["equal_kl"] == ("r", "x0", "r0", "c")
    assert takes["gradient_scale"] == ("r", "x0", "r0", "alpha", "alpha0")
    assert takes["by_rank"] == ("r", "x0")
    assert takes["table"] == ("knob", "r", "table")
    with pytest.raises(ValueError, match=r"rules\.lr\.at_rank: got 16, allowed: nothing: rule 'constant' has no such"):
        runs_of("demo", "rules.lr.rule=constant", "rules.lr.at_rank=16")
    with pytest.raises(ValueError, match=r"rules\.lr\.value: got 0\.1, allowed: nothing: rule 'table' reads its table"):
        runs_of("demo", "rules.lr.rule=table", "rules.lr.table={1: 1, 8: 1, 32: 1}", "rules.lr.value=0.1")


@pytest.mark.parametrize(("rule", "option", "limits"), [("equal_kl", "c", (0, 1e6)), ("power", "exponent", (-4, 4))])
def test_an_option_has_a_range(rule, option, limits):
    for limit in limits:
        Rule(rule, **{option: limit}).check("rules.lr")
    for beyond in (limits[0] - 1, limits[1] + 1):
        with pytest.raises(ValueError, match=rf"rules\.lr\.{option}: got .*, allowed: {limits[0]} to "):
            Rule(rule, **{option: beyond}).check("rules.lr")


def test_alpha_has_no_rule_that_asks_for_alpha(monkeypatch):
    """Without that, such a rule would ask for itself for ever."""
    row = rules.Row(lambda r, x0, alpha: x0 * alpha / r, "x0 alpha / r", "example")
    monkeypatch.setitem(rules.RULES, "by_alpha", row)
    assert "by_alpha" in rules.allowed("lr") and "by_alpha" not in rules.allowed("alpha")


def test_evidence_is_one_of_three_words():
    words = ("measured here", "derived", "conjecture")
    claiming = {name: row.evidence for name, row in rules.RULES.items() if row.evidence}
    at_knobs = [said for row in rules.RULES.values() for said in row.at_knob.values()]
    assert at_knobs and all(said.startswith(words) for said in at_knobs)
    assert {knob for row in rules.RULES.values() for knob in row.at_knob} <= {knob.name for knob in fields(Rules)}
    assert all(said.startswith(words) for said in claiming.values())
    assert {*rules.RULES} - {*claiming} == {"constant"}  # has some at each knob
    knobs = runs_of("low_rank", "ranks=[1]")[0].knobs
    said = {name: knob.evidence(name).partition(":")[0] for name, knob in knobs.items()}
    assert said == dict.fromkeys(
        ("alpha", "lr", "lr_ratio", "kl", "max_norm", "warmup"), "measured here"
    ) | dict.fromkeys(("clip_low", "clip_high"), "conjecture")
    words = (
        "rules.warmup.rule=by_rank",
        "rules.alpha={rule: power, exponent: 0}",
        "rules.kl={rule: power, exponent: 0}",
    )
    knobs = runs_of("low_rank", "ranks=[1]", *words)[0].knobs
    assert knobs["warmup"].evidence("warmup").startswith("conjecture; measured here with c = 4: +.269")
    assert (knobs["alpha"].evidence("alpha")[:7], knobs["kl"].evidence("kl")) == ("derived", "conjecture")


@pytest.mark.parametrize("words", [[], ["rules.alpha={rule: power, exponent: 0.5}", "rules.lr=1e-3"]])
def test_the_alpha_that_acts_is_the_one_that_is_printed(words):
    for run in runs_of("low_rank", *words):
        shapes = module_shapes(run.scale)
        table = allocation_table(run.recipe, run.scale.reference, run.rank, shapes, run.seed)
        assert {row.alpha for row in table} == {run["alpha"]} == {run.row()["alpha"]}


def test_clipping_is_compared_with_its_own_default(monkeypatch):
    """If the defaults of clip_high and clip_low differ, that is not a setting of the user."""
    high = Rule("constant", value=0.28)
    monkeypatch.setattr(plan_module, "Rules", lambda: replace(Rules(), clip_high=high))
    assert runs_of("demo", "updates_per_rollout=1", "rules.clip_high=0.28")
    with pytest.raises(ValueError, match=r"rules\.clip_low: got a value while updates_per_rollout=1"):
        runs_of("demo", "updates_per_rollout=1", "rules.clip_high=0.28", "rules.clip_low=0.28")
