"""Axes of the grid: keys of the recipe with lists of values, whose points are arms."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from conftest import ROOT, runs_of

from rankrl.cli import main
from rankrl.recipe.axes import arm_name, flat_axes, given_arm, value_slug, value_text
from rankrl.recipe.idle import idle_axes
from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import plan
from rankrl.recipe.run_id import parse_run_id, run_id
from rankrl.report.planned import read_plan
from rankrl.report.resolved import kind
from rankrl.sweep.identity import check_identity
from rankrl.sweep.tasks import deal, left

RATES = "axes={rules.lr.value: [5e-4, 1e-3]}"
PROFILE = ("allocation.method=profile", "allocation.profile=linear", "allocation.slope=0.5")
SMALL = ("ranks=[1]", "seeds=[0]")


def ids(*words, recipe="demo"):
    return [run.run_id for run in runs_of(recipe, *words)]


def test_the_grid_is_the_product_of_axes_ranks_and_seeds():
    axes = "axes={rules.lr.value: [5e-4, 1e-3], rules.alpha.exponent: [0, 0.5, 1]}"
    runs = runs_of("demo", axes, "rules.alpha.rule=power", "ranks=[1,8]", "seeds=[0,1]")
    assert len(runs) == 2 * 3 * 2 * 2
    assert [run.run_id for run in runs][:5] == [
        "lr_0p0005-alpha_exponent_0-r1-b16-s0",
        "lr_0p0005-alpha_exponent_0-r1-b16-s1",
        "lr_0p0005-alpha_exponent_0-r8-b16-s0",
        "lr_0p0005-alpha_exponent_0-r8-b16-s1",
        "lr_0p0005-alpha_exponent_0p5-r1-b16-s0",
    ]
    last = runs[-1]
    assert last.axes == {"rules.lr.value": 1e-3, "rules.alpha.exponent": 1.0}
    assert (last["lr"], last["alpha"], last.rank) == (1e-3, 4.0, 8)  # 16 x 8 / 32
    assert last.recipe.rules.alpha.exponent == 1.0


def test_ids_without_axes_stay_and_a_value_that_is_added_renames_none():
    assert ids(*SMALL) == ["r1-b16-s0"]
    assert ids(*SMALL, "axes={rules.lr.value: [1e-3]}") == ["lr_0p001-r1-b16-s0"]
    more = ids(*SMALL, "axes={rules.lr.value: [2e-3, 0.001, 1e-5]}")
    assert more == ["lr_0p002-r1-b16-s0", "lr_0p001-r1-b16-s0", "lr_1e-5-r1-b16-s0"]
    assert "axes" not in runs_of("demo")[0].resolved()
    assert runs_of("demo", RATES)[0].resolved()["axes"] == {"rules.lr.value": 5e-4}


def test_arms_are_crossed_with_axes():
    runs = runs_of("ablate_critic", "axes={critic.rank: [8, 16]}", *SMALL)
    assert [run.arm for run in runs][:4] == [
        "off-critic_rank_8",
        "off-critic_rank_16",
        "warmup-critic_rank_8",
        "warmup-critic_rank_16",
    ]
    assert [run.recipe.critic.warmup_steps for run in runs][:4] == [0, 0, 10, 10]
    assert [given_arm(run.arm, run.axes) for run in runs][:3] == ["off", "off", "warmup"]
    assert given_arm("lr_0p0005", {"rules.lr.value": 5e-4}) == "" and given_arm("on", {}) == "on"


def test_nested_and_dotted_keys_are_the_same_axes():
    nested = {"rules": {"lr": {"value": [1]}}, "critic.rank": [8]}
    assert flat_axes(nested) == {"rules.lr.value": [1], "critic.rank": [8]}
    assert ids("axes.rules.lr.value=[5e-4,1e-3]", *SMALL) == ids(RATES, *SMALL)


def test_words_replace_the_values_of_a_files_axis(tmp_path):
    recipe = tmp_path / "grid.yaml"
    recipe.write_text(
        "ranks: [1]\nbatch_sizes: [16]\nseeds: [0]\nsteps: 2\n"
        "axes:\n  rules.lr.value: [5e-4, 1e-3]\n  correction: [none, token_clip]\n"
    )
    assert [run.run_id for run in plan(load_experiment(recipe))][:2] == [
        "lr_0p0005-correction_none-r1-b16-s0",
        "lr_0p0005-correction_token_clip-r1-b16-s0",
    ]
    words = ["axes.rules.lr.value=[2e-3]", "axes.correction=[none]"]
    (run,) = plan(load_experiment(recipe, words))
    assert (run.arm, run["lr"], run.recipe.correction.method) == ("lr_0p002-correction_none", 2e-3, "none")


def test_points_that_are_put_in_place_are_as_if_merged():
    """Of points that differ in plain values alone, only the first is merged by OmegaConf."""
    placed = runs_of("demo", "axes={critic.lambda: [null, 0.9], rules.lr: [1e-4, 2e-4]}", *SMALL)[-1]
    merged = runs_of("demo", "critic.lambda=0.9", "rules.lr=2e-4", *SMALL)[0]
    assert placed.axes == {"critic.lambda": 0.9, "rules.lr": 2e-4}
    assert (placed.recipe.critic, placed.recipe.rules) == (merged.recipe.critic, merged.recipe.rules)
    assert placed.recipe.critic.lambda_ == 0.9
    ruled = runs_of("demo", "axes={rules.alpha.exponent: [0.5, 1], rules.alpha.rule: [power]}", *SMALL)
    assert [run.recipe.rules.alpha.exponent for run in ruled] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "text", "slug"),
    [
        (5e-4, "0.0005", "0p0005"), (1.0, "1", "1"), (1, "1", "1"), (-0.5, "-0.5", "-0p5"), (1e-5, "1e-5", "1e-5"),
        (1.25e-10, "1.25e-10", "1p25e-10"), (1e22, "1e22", "1e22"), (-0.0, "0", "0"),
        (0.1 + 0.2, "0.30000000000000004", "0p30000000000000004"), (True, "true", "true"), (False, "false", "false"),
        (None, "null", "null"), ("early_anchor", "early_anchor", "early_anchor"), ("null", "null", "null_74234e98"),
        ("", "", "_e3b0c442"), ("../../etc", "../../etc", "etc_74ccf3c5"), ("a b", "a b", "ab_c8687a08"),
        ("r1-b16-s0", "r1-b16-s0", "r1b16s0_2a988158"),
    ],
)  # fmt: skip
def test_values_as_they_are_shown_and_in_run_ids(value, text, slug):
    assert (value_text(value), value_slug(value)) == (text, slug)


HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "a,b",
    "a-b",
    "a_b",
    "\0",
    "ä",
    "\u202e",
    "x" * 500,
    "null",
    "-r1-b16-s0",
    "%s",
]


def test_hostile_values_give_distinct_names_of_files():
    names = [run_id(arm_name("on", {"key": value}), 1, 16, 0) for value in HOSTILE]
    assert len({*names}) == len(names)
    for name in names:
        assert re.fullmatch(r"on-key_[A-Za-z0-9_]*-r1-b16-s0", name) and len(name) < 60
        assert run_id(*parse_run_id(name)) == name
        assert parse_run_id(name)[1:] == (1, 16, 0)


def test_every_id_may_name_an_adapter():
    """PEFT keeps the adapters of a module in a ModuleDict, whose keys have no dot."""
    from torch.nn import Identity, ModuleDict

    axes = "axes={rules.lr.value: [1.25e-5, 0.5], rules.alpha.exponent: [-0.5, 1]}"
    names = ids(axes, "rules.alpha.rule=power", *SMALL)
    names += [run_id(arm_name("on", {"kl_schedule.shape": value}), 1, 16, 0) for value in HOSTILE]
    assert len(ModuleDict({name: Identity() for name in names})) == 4 + len(HOSTILE)


def test_every_id_is_parsed_and_planned(tmp_path):
    runs = runs_of("demo", "axes={rules.lr.value: [1e-5, 1e-3], gae_lambda: [0.95, 1]}", *SMALL)
    todo, told = left(runs, tmp_path / "demo")
    assert told == "4 runs: 4 to do"
    assert list(read_plan(tmp_path / "demo")) == [run.run_id for run in runs]
    assert [run_id(*parse_run_id(run.run_id)) for run in runs] == [run.run_id for run in runs]
    (task,) = deal([run.run_id for run in todo], 4, 10)
    assert ",".join(task).split(",") == [run.run_id for run in runs]  # a task's runs, as `rankrl run` reads them


def test_a_run_of_another_value_is_another_run(tmp_path):
    one, other = runs_of("demo", RATES, *SMALL)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**one.resolved(), "versions": {}}, sort_keys=False))
    check_identity(tmp_path, one)
    with pytest.raises(ValueError, match=r"holds a run with run_id='lr_0p0005-r1-b16-s0', and this one has"):
        check_identity(tmp_path, other)


def test_runs_of_an_arm_share_their_values_in_a_report():
    result = {"arm": "lr_0p0005", "base_params": 1}
    kinds = [kind({"axes": f"axes:\n  rules.lr.value: {value}".partition(":")[2]}, result) for value in (5e-4, 1e-3)]
    assert kinds[0]["axes of arm lr_0p0005"] == '{"rules.lr.value": 0.0005}'
    assert kinds[0] != kinds[1]


WRONG = {
    "the grid": (["axes={ranks: [1]}"], "axes: got 'ranks', allowed: keys other than the grid"),
    "seeds": (["axes={seeds: [1]}"], "axes: got 'seeds'", "seeds is the same for all arms"),
    "a part of the grid": (["axes={stages.first: [2]}"], "axes: got 'stages.first'"),
    "arms": (["axes={arms.on.gamma: [1]}"], "axes: got 'arms.on.gamma'"),
    "the scale": (["axes={scale: [nano]}"], "axes: got 'scale'", "one scale: run one sweep for each"),
    "a key of the scale": (["axes={scale.sampling.temperature: [1]}"], "'scale.sampling.temperature'", "one scale"),
    "how runs are executed": (["axes={parallel_runs: [1]}"], "axes: parallel_runs: Key 'parallel_runs' not in"),
    "an unknown key": (["axes={rules.lr.exponnt: [1]}"], "axes: rules.lr.exponnt", "'exponent'"),
    "a wrong type": (["axes={rules.lr.value: [fast]}"], "axes: rules.lr.value: got 'fast', allowed: a number"),
    "no list": (["axes={rules.lr.value: 1e-3}"], "axes.rules.lr.value: got 0.001, allowed: a list of values"),
    "no list in words": (["axes.rules.lr.value=1e-3"], "axes.rules.lr.value: got 0.001, allowed: a list of values"),
    "no keys": (["axes=[1]"], "axes: got [1], allowed: keys of the recipe"),
    "no values": (["axes={gamma: []}"], "axes.gamma: got [], allowed: at least one value"),
    "one value twice": (["axes={rules.lr.value: [1e-3, 0.0010]}"], "axes.rules.lr.value", "0.001 stands twice"),
    "one bool twice": (["axes={advantage.drop_uniform_groups: [true, yes]}"], "True stands twice"),
    "one number twice": (["axes={gae_lambda: [1, 1.0]}"], "axes.gae_lambda", "1.0 stands twice"),
    "a mapping": (["rules.lr.rule=table", "axes={rules.lr.table: [{1: 1}]}"], "numbers, texts, true, false and null"),
    "an axis within another": (["axes={rules.lr: [1], rules.lr.value: [1]}"], "axes.rules.lr.value", "'rules.lr'"),
    "a key that is set": ([RATES, "rules.lr.value=1e-4"], "rules.lr.value: got 0.0001", "axes.rules.lr.value"),
    "a key that is set in short": ([RATES, "rules.lr=1e-4"], "rules.lr.value: got 0.0001", "it is an axis"),
    "a key that an arm sets": (
        [RATES, "arms.on={rules: {lr: 1e-4}}"],
        "arms.on.rules.lr.value: got 0.0001, allowed: nothing: it is an axis",
    ),
    "no effect": (["axes={rules.alpha.exponent: [0, 1]}"], "rules.alpha.exponent: got 0.0", "no such option"),
    "a number to base 8": (["axes={rules.lr.value: [0123]}"], "axes.rules.lr.value", "decimal number"),
    "axes of an arm": (["arms.on={axes: {gamma: [1]}}"], "arms.on", "keys other than the grid"),
    "two keys of one name": (["axes={a.b: [1], a_b: [1]}"], "axes: got ['a.b', 'a_b']", "run ids"),
    "a long name": ([f"axes={{init.method: [{'x' * 500}]}}"], "init.method"),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_wrong_axes_give_one_line_that_teaches(words, capsys):
    overrides, *told = words
    code = main(["plan", str(ROOT / "recipes" / "demo.yaml"), *overrides])
    said = capsys.readouterr()
    assert (code, said.out) == (2, ""), said.err
    (line,) = said.err.splitlines()
    for word in told:
        assert word in line


def test_names_that_no_directory_can_have_are_refused():
    point = {f"key{i}": 0.30000000000000004 for i in range(6)}
    with pytest.raises(ValueError, match=r"axes: got 'key0_0p3.*', allowed: at most 120 characters"):
        arm_name("", point)


def test_a_files_value_gives_way_to_an_axis_in_words_and_not_beside_it(tmp_path):
    recipe = tmp_path / "grid.yaml"
    recipe.write_text("ranks: [1]\nbatch_sizes: [16]\nseeds: [0]\nsteps: 2\nrules: {lr: 1e-4}\n")
    assert [run["lr"] for run in plan(load_experiment(recipe, [RATES]))] == [5e-4, 1e-3]
    recipe.write_text(recipe.read_text() + "axes: {rules.lr.value: [5e-4]}\n")
    with pytest.raises(ValueError, match=r"rules.lr.value: got 0.0001, allowed: nothing: it is an axis"):
        load_experiment(recipe)


def test_an_axis_without_effect_is_said():
    power = "rules.alpha.rule=power"
    runs = runs_of("demo", "axes={rules.alpha.exponent: [0, 0.5]}", power)
    assert idle_axes(runs) == ["warning: rank 32: rules.alpha.exponent has no effect: 0, 0.5 give the same runs"]
    mixed = runs_of("demo", "axes={rules.alpha.exponent: [0, 0.5]}", power, *PROFILE)
    assert idle_axes(mixed) == []  # modules of other ranks than 32 have another alpha
    critic = runs_of(
        "demo", "axes={advantage: [gae, rloo], critic.rank: [8, 16], rules.lr.value: [1e-3, 2e-3]}", *SMALL
    )
    assert idle_axes(critic) == ["warning: rank 1: critic.rank has no effect: 8, 16 give the same runs"]
    assert idle_axes(runs_of("demo", RATES)) == [] == idle_axes(runs_of("demo"))


def test_plan_shows_axes_as_json(capsys):
    assert main(["plan", str(ROOT / "recipes" / "demo.yaml"), RATES, *SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["arm"], row["axes"], row["lr"]) for row in rows] == [
        ("lr_0p0005", {"rules.lr.value": 0.0005}, 0.0005),
        ("lr_0p001", {"rules.lr.value": 0.001}, 0.001),
    ]
    assert main(["plan", str(ROOT / "recipes" / "demo.yaml"), "axes={steps: [2, 3]}", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "2 runs of 2 or 3 steps" in shown and "steps_3-r1-b16-s0" in shown


def test_ten_thousand_runs_of_a_grid_merge_each_rule_once(monkeypatch):
    from rankrl.recipe import load

    merged, build = [], load.build
    monkeypatch.setattr(load, "build", lambda kind, *layers: merged.append(kind) or build(kind, *layers))
    axes = (
        f"axes={{rules.lr.value: {[i / 1e4 for i in range(1, 8)]}, rules.alpha.exponent: {[i / 10 for i in range(7)]}}}"
    )
    runs = runs_of("baseline", axes, "rules.alpha.rule=power")
    assert len(runs) == 7 * 7 * 9 * 4 * 6
    assert len({run.run_id for run in runs}) == len(runs)
    assert [kind.__name__ for kind in merged] == ["Recipe", "Scale", "Execution"]  # 30 ms each, not 49 times
