"""Allocation of a budget to modules, compared with brute force and at the shapes of Qwen3-8B."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT, rankrl, runs_of

from rankrl.recipe import spending
from rankrl.recipe.allocation import allocation_table, budget, module_shapes, read_importance, write_importance
from rankrl.recipe.idle import idle_allocations
from rankrl.recipe.rank_table import as_json, document, params, read_table

SMALL = {"layers.0.q_proj": (4, 4), "layers.1.q_proj": (4, 4), "layers.0.up_proj": (4, 12), "layers.1.up_proj": (4, 12)}
NON_UNIFORM = {
    "linear": ["allocation.method=profile", "allocation.profile=linear", "allocation.slope=0.7"],
    "linear, deep first": ["allocation.method=profile", "allocation.profile=linear", "allocation.slope=-1"],
    "triangular": ["allocation.method=profile", "allocation.profile=triangular", "allocation.peak=0.5"],
    "last_k": ["allocation.method=profile", "allocation.profile=last_k", "allocation.last_k=12"],
    "mlp": ["allocation.method=profile", "allocation.profile=mlp"],
    "table": [
        "allocation.method=profile",
        "allocation.profile=table",
        "allocation.table={q_proj: 2, k_proj: 0, v_proj: 3, o_proj: 1, gate_proj: 1, up_proj: 0.5, down_proj: 2}",
    ],
    "greedy": ["allocation.method=greedy", "allocation.value=signal"],
    "proportional": ["allocation.method=proportional", "allocation.value=fisher"],
}


def spectra(shapes, length, seed=0):
    """Made-up importance: power-law spectra of very different sizes."""
    rng = random.Random(seed)
    found = {}
    for name in shapes:
        size, decay = rng.lognormvariate(0, 1.5), rng.uniform(0.3, 2)
        found[name] = [size / (i + 1) ** decay for i in range(length)]
    return found


def run_table(run, importance=None):
    shapes = module_shapes(run.scale)
    return allocation_table(run.recipe, run.scale.reference, run.rank, shapes, run.seed, importance), shapes


def ranks_of(rows, shapes):
    return {name: next((row.rank for row in rows if row.module == name), 0) for name in shapes}


def best(values, where):
    """The largest value, found by trying every allocation."""
    names = list(values)
    choices = itertools.product(*[range(where.least, min(where.most[n], len(values[n])) + 1) for n in names])
    fitting = (c for c in choices if where.spent(dict(zip(names, c, strict=True))) <= where.budget)
    return max(sum(sum(values[n][:r]) for n, r in zip(names, c, strict=True)) for c in fitting)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("level", [False, True], ids=["unlike costs", "equal costs"])
def test_greedy_is_within_one_direction_of_brute_force(seed, level):
    rng = random.Random(seed)
    sizes = [(4, 4) if level else (rng.randint(3, 9), rng.randint(3, 9)) for _ in range(4)]
    shapes = {f"layers.{i}.q_proj": shape for i, shape in enumerate(sizes)}
    values = {name: sorted((rng.random() for _ in range(3)), reverse=True) for name in shapes}
    where = spending.space(shapes, rng.randint(20, 80), most=3)
    ranks = spending.greedy({n: [v / where.costs[n] for v in values[n]] for n in shapes}, where)
    assert where.spent(ranks) <= where.budget
    found, optimum = sum(sum(values[n][:r]) for n, r in ranks.items()), best(values, where)
    one = max(values[n][r] for n, r in ranks.items() if r < 3) if any(r < 3 for r in ranks.values()) else 0
    assert optimum - one <= found + 1e-12 <= optimum + 2e-12
    if level:
        assert found == pytest.approx(optimum)


def test_greedy_takes_value_per_parameter_and_fills_up():
    where = spending.space(SMALL, 40)  # a rank costs 8 in q_proj, 16 in up_proj
    density = {
        "layers.0.q_proj": [5, 4],
        "layers.1.q_proj": [1, 1],
        "layers.0.up_proj": [6, 3],
        "layers.1.up_proj": [2],
    }
    assert spending.greedy(density, where) == {
        "layers.0.q_proj": 2,  # 8 + 8, after the 16 of up_proj; the next, another 16 in up_proj, does not fit
        "layers.1.q_proj": 1,
        "layers.0.up_proj": 1,
        "layers.1.up_proj": 0,
    }


def test_greedy_without_any_signal_spends_evenly():
    where = spending.space(SMALL, 48 * 3)
    assert set(spending.greedy({name: [0.0] * 4 for name in SMALL}, where).values()) == {3}


def test_profiles_are_literal():
    where = spending.space(SMALL, 96)
    halves = {"layers.0.q_proj": 1, "layers.1.q_proj": 3, "layers.0.up_proj": 1, "layers.1.up_proj": 3}
    assert spending.proportional({name: float(rank) for name, rank in halves.items()}, where) == halves
    attention = spending.proportional({n: float("q" in n) for n in SMALL}, where)
    assert list(attention.values()) == [4, 4, 0, 0]  # 8 is the most they could hold at this price, 4 their dimension
    assert list(spending.proportional(dict.fromkeys(SMALL, 1.0), spending.space(SMALL, 56)).values()) == [1, 2, 1, 1]
    assert [spending.linear(d, 0.5) for d in (0.25, 0.5, 0.75)] == [0.75, 1.0, 1.25]
    assert [spending.triangular(d, 0.5) for d in (0.25, 0.5, 0.75)] == [0.5, 1.0, 0.5]


def test_limits_hold_and_what_they_free_goes_elsewhere():
    where = spending.space(SMALL, 96, least=1, most=3)
    density = {"layers.0.q_proj": 100.0, "layers.1.q_proj": 0.0, "layers.0.up_proj": 1.0, "layers.1.up_proj": 1.0}
    assert list(spending.proportional(density, where).values()) == [3, 1, 2, 2]


def test_shrinkage_ends_at_uniform_and_at_the_proposal():
    where, proposal = spending.space(SMALL, 96), dict(zip(SMALL, (4, 4, 2, 0), strict=True))
    assert set(spending.shrunk(proposal, 0.0, where).values()) == {2}
    assert spending.shrunk(proposal, 1.0, where) is proposal
    assert list(spending.shrunk(proposal, 0.5, where).values()) == [3, 3, 2, 1]


def test_controls_deal_the_same_values_otherwise():
    values = {name: [float(i)] for i, name in enumerate(SMALL)}
    assert list(spending.mirrored(values).values()) == [[3.0], [2.0], [1.0], [0.0]]
    dealt = spending.permuted(values, 1)
    assert sorted(dealt.values()) == sorted(values.values()) and dealt != values
    assert dealt == spending.permuted(dict(reversed(values.items())), 1) != spending.permuted(values, 2)


def mixed_run():
    """Ranks 0 to 5, with a scale alpha / r of their own."""
    run = runs_of("demo", "ranks=[2]", "seeds=[0]", "steps=3", *NON_UNIFORM["greedy"], "allocation.max_rank=5")[0]
    return run, spectra(module_shapes(run.scale), 5, seed=1)


@pytest.mark.parametrize("control", ["none", "random", "reversed"])
@pytest.mark.parametrize("words", NON_UNIFORM.values(), ids=NON_UNIFORM)
def test_budgets_are_spent_at_the_shapes_of_qwen3_8b(words, control):
    for run in runs_of(
        "baseline",
        "scale=qwen3-8b",
        "ranks=[1,2,4,8,32]",
        "seeds=[0]",
        "batch_sizes=[16]",
        *words,
        f"allocation.control={control}",
    ):
        shapes = module_shapes(run.scale)
        importance = spectra(shapes, run.max_rank) if run.recipe.allocation.measured else None
        rows, _ = run_table(run, importance)
        given = 2_727_936 * run.rank
        assert 0.99 * given <= params(rows) <= given == budget(run.recipe.allocation, run.rank, shapes)
        assert max(row.rank for row in rows) <= run.max_rank
        assert params(rows) <= run.trainable_params <= given


@pytest.mark.parametrize("rank", [1, 8, 256])
def test_uniform_counts_of_qwen3_8b(rank):
    rows, shapes = run_table(runs_of("baseline", "scale=qwen3-8b", f"ranks=[{rank}]")[0])
    assert len(rows) == len(shapes) == 252
    assert params(rows) == 2_727_936 * rank
    assert {row.rank for row in rows} == {rank}


@pytest.mark.parametrize("words", NON_UNIFORM.values(), ids=NON_UNIFORM)
def test_the_order_of_modules_does_not_matter(words):
    run = runs_of("baseline", "scale=qwen3-8b", "ranks=[2]", *words)[0]
    shapes = module_shapes(run.scale)
    importance, other = spectra(shapes, 16), dict(reversed(shapes.items()))
    tables = [
        allocation_table(run.recipe, run.scale.reference, 2, s, 0, dict(reversed(importance.items())))
        for s in (shapes, other)
    ]
    assert ranks_of(tables[0], shapes) == ranks_of(tables[1], shapes)


def test_alpha_follows_the_rule_at_the_modules_own_rank():
    mixed = NON_UNIFORM["linear"]
    for row in run_table(runs_of("demo", "ranks=[8]", *mixed)[0])[0]:
        assert row.alpha == 16
    words = ["rules.alpha={rule: power, exponent: 1.0}", "rules.lr={rule: constant}"]
    rows, _ = run_table(runs_of("demo", "ranks=[8]", *words, *mixed)[0])
    assert len({row.rank for row in rows}) > 1
    assert {row.alpha / row.rank for row in rows} == {0.5}  # one scale for all, as the rule says


def test_last_k_and_table_drop_modules():
    last = runs_of(
        "demo", "ranks=[4]", "allocation.method=profile", "allocation.profile=last_k", "allocation.last_k=1"
    )[0]
    rows, shapes = run_table(last)
    assert {spending.layer_and_type(row.module)[0] for row in rows} == {1}
    assert {row.rank for row in rows} == {8} and last.max_rank == 8
    assert params(rows) == last.trainable_params == 4 * 7936
    assert [row["rank"] for row in document(rows, shapes, "x", 4 * 7936)["modules"]] == [0] * 7 + [8] * 7


def test_tau_0_is_uniform_and_budgets_may_be_given_otherwise():
    shrunk, plain = (
        runs_of("demo", "ranks=[8]", *words)[0] for words in ([*NON_UNIFORM["mlp"], "allocation.tau=0"], [])
    )
    assert run_table(shrunk)[0] == run_table(plain)[0]
    for words in ("allocation.budget_rank=2.5", "allocation.budget_params=19840"):
        run = runs_of("demo", "ranks=[8]", *NON_UNIFORM["linear"], words)[0]
        assert 0.97 * 19840 <= run.trainable_params == params(run_table(run)[0]) <= 19840


def test_a_table_and_an_importance_survive_their_files(tmp_path):
    run = runs_of("demo", "ranks=[2]", *NON_UNIFORM["greedy"])[0]
    importance = spectra(module_shapes(run.scale), run.max_rank)
    rows, shapes = run_table(run, importance)
    (tmp_path / "allocation.json").write_text(as_json(document(rows, shapes, "greedy", 2 * 7936)))
    content = json.loads((tmp_path / "allocation.json").read_text())
    assert read_table(tmp_path / "allocation.json") == rows
    assert content["spent"] == params(rows) == sum(row["params"] for row in content["modules"]) <= content["budget"]
    assert [row["module"] for row in content["modules"]] == list(shapes)
    write_importance(tmp_path / "importance.json", "signal", importance)
    assert read_importance(tmp_path / "importance.json", {"signal"}) == ("signal", importance)
    with pytest.raises(ValueError, match=r"importance.json of signal', allowed: what allocation.value says: fisher"):
        read_importance(tmp_path / "importance.json", {"fisher"})
    with pytest.raises(ValueError, match="nothing: no allocation here is measured"):
        read_importance(tmp_path / "importance.json", set())


WRONG_IMPORTANCE = {
    "none": (None, "allocation.method: got 'greedy', allowed: this method with a measured importance"),
    "of other modules": ({"model.layers.0.mlp.up_proj": [1.0]}, "values for every adapted module"),
    "rising": ("rising", "do not increase"),
}


@pytest.mark.parametrize(("importance", "says"), WRONG_IMPORTANCE.values(), ids=WRONG_IMPORTANCE)
def test_an_importance_that_does_not_fit_is_refused(importance, says):
    run = runs_of("demo", "ranks=[2]", *NON_UNIFORM["greedy"])[0]
    if importance == "rising":
        importance = {name: [1.0, 2.0] for name in module_shapes(run.scale)}
    with pytest.raises(ValueError, match=says):
        run_table(run, importance)


PROFILE = ["allocation.method=profile"]
GREEDY = NON_UNIFORM["greedy"]
WRONG = {
    "no such method": (["allocation.method=magic"], "allocation.method", "proportional"),
    "option of another method": (["allocation.slope=0.5"], "allocation.slope", "nothing: method 'uniform'"),
    "control of uniform": (["allocation.control=random"], "allocation.control", "nothing: method 'uniform'"),
    "no profile": (PROFILE, "allocation.profile", "triangular"),
    "profile without its option": ([*PROFILE, "allocation.profile=linear"], "allocation.slope", "a value"),
    "option of another profile": (
        [*PROFILE, "allocation.profile=mlp", "allocation.peak=0.5"],
        "allocation.peak",
        "nothing: profile 'mlp'",
    ),
    "no value": (["allocation.method=greedy"], "allocation.value", "fisher"),
    "value of a profile": ([*NON_UNIFORM["mlp"], "allocation.value=signal"], "allocation.value", "nothing"),
    "slope of 0": ([*PROFILE, "allocation.profile=linear", "allocation.slope=0"], "allocation.slope", "not 0"),
    "tau above 1": ([*GREEDY, "allocation.tau=1.5"], "allocation.tau", "0 (uniform) to 1"),
    "two budgets": ([*GREEDY, "allocation.budget_rank=2", "allocation.budget_params=9"], "budget_params", "nothing"),
    "budget for nothing": ([*NON_UNIFORM["mlp"], "allocation.budget_params=100"], "100 parameters", "at least 512"),
    "least rank above the budget": ([*GREEDY, "allocation.min_rank=2", "ranks=[1]"], "rank 2 in every", "15,872"),
    "largest rank below the budget": ([*GREEDY, "allocation.max_rank=4"], "allocation.max_rank", "uniform rank, 8"),
    "all layers are the last": (
        [*PROFILE, "allocation.profile=last_k", "allocation.last_k=2"],
        "allocation.last_k",
        "1 to 1",
    ),
    "table without a type": (
        [*PROFILE, "allocation.profile=table", "allocation.table={q_proj: 1}"],
        "allocation.table",
        "down_proj",
    ),
    "alpha by a table": (
        [*GREEDY, "rules.alpha.rule=table", "rules.alpha.table={1: 1, 8: 2, 32: 3}", "rules.lr=1e-3"],
        "rules.alpha.table",
        "rank 2",
    ),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_a_wrong_section_gives_one_line_that_teaches(words):
    overrides, *told = words
    with pytest.raises(ValueError) as error:
        runs_of("demo", *overrides)
    assert "\n" not in str(error.value)
    for word in told:
        assert word in str(error.value)


COMMAND = """
import sys
from rankrl.cli import main
assert main(sys.argv[1:]) == 0
heavy = ("torch", "ray", "vllm", "transformers", "peft", "pandas", "scipy", "matplotlib")
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.slow
def test_the_command_shows_every_arm_without_torch(tmp_path):
    recipe = tmp_path / "ablate.yaml"
    recipe.write_text(
        "ranks: [1]\nbatch_sizes: [16]\nseeds: [0]\nsteps: 2\narms:\n  off: {}\n"
        "  on: {allocation: {method: greedy, value: signal}}\n"
        "  control: {allocation: {method: greedy, value: signal, control: reversed}}\n"
    )
    words = [sys.executable, "-c", COMMAND, "adapter", str(recipe), "--rank", "2", "--all"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "method uniform: rank 2; 14 of 14 modules adapted" in done.stdout, done.stderr
    assert "15,872 of 15,872 parameters spent (100.00%); 1.3248% of the base" in done.stdout
    assert done.stdout.count("waits for a measurement (--importance FILE); at most 15,872 parameters") == 2
    assert "model.layers.1.mlp.down_proj" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    _, importance = mixed_run()
    write_importance(tmp_path / "importance.json", "signal", importance)
    done = rankrl(
        "adapter", str(recipe), "--rank", "2", "--importance", str(tmp_path / "importance.json"), "--to", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    for arm in ("off", "on", "control"):
        assert {p.name for p in (tmp_path / arm).iterdir()} == {"allocation.json", "allocation.svg", "allocation.png"}
    on, control = (read_table(tmp_path / arm / "allocation.json") for arm in ("on", "control"))
    assert on != control and params(on) == pytest.approx(params(control), rel=0.05)
    svg = (tmp_path / "off" / "allocation.svg").read_text()
    assert "15,872 of 15,872 parameters" in svg and "down_proj" in svg


def test_an_allocation_that_comes_out_uniform_is_said():
    deep = ["allocation.method=profile", "allocation.profile=linear", "allocation.slope=0.5", "seeds=[0]"]
    assert idle_allocations(runs_of("low_rank", *deep, "ranks=[1,8]")) == [
        "warning: rank 1: allocation.method=profile has no effect at scale nano: every module gets rank 1"
    ]
    assert idle_allocations(runs_of("low_rank", "ranks=[1]")) == []
    done = rankrl("plan", "recipes/low_rank.yaml", "ranks=[1]", *deep)
    assert done.returncode == 0 and "has no effect at scale nano" in done.stderr


def test_the_command_refuses_a_wrong_importance_in_one_line(tmp_path):
    (tmp_path / "importance.json").write_text("[]")
    words = ["adapter", "recipes/demo.yaml", "--rank", "2", *GREEDY, "--importance", str(tmp_path / "importance.json")]
    done = rankrl(*words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("rankrl: --importance: got ")
