"""What a key means if a record lacks it: literal trees, for every kind of key."""

from __future__ import annotations

import pytest
import yaml
from conftest import ROOT, runs_of
from growing import EARLY, Grown

from rankrl.recipe import history
from rankrl.recipe.history import completed, first_difference, unknown
from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import plan
from rankrl.sweep.identity import check_identity

RECORDED = ROOT / "tests" / "recorded" / "run.yaml"


@pytest.fixture
def grown(monkeypatch):
    """Gives the section `recipe` the schema `Grown`; the fixture's value sets entries of ADDED."""
    monkeypatch.setitem(history.SECTIONS, "recipe", Grown)
    monkeypatch.setattr(history, "ADDED", {})
    return lambda **added: history.ADDED.update({f"recipe.{key.replace('__', '.')}": v for key, v in added.items()})


def test_a_key_that_a_record_lacks_is_the_default(grown):
    assert completed("recipe", EARLY) == {
        "samples": 4,
        "rate": 0.5,
        "limit": None,
        "marks": [1, 2],
        "names": ["a"],
        "weights": {"x": 1.0},
        "noise": {"kind": "none", "share": 0.1, "parts": {"left": {"size": 1, "colour": "red"}}},
        "old": {"depth": 7, "width": 3},
        "maybe": None,
        "given": {"size": 5, "colour": "red"},
        "by_name": {"one": {"size": 2, "colour": "red"}},
        "listed": [{"size": 9, "colour": "red"}],
        "lr": {"rule": "constant", "c": None, "extra": None},
        "kl": {"rule": "equal", "c": 4.0, "extra": 2.0},
        "fresh": {"rule": "equal", "c": 1.0, "extra": None},
    }


def test_what_the_history_says_wins_over_the_default(grown):
    grown(rate=0.25, limit=3, marks=(9,), noise__share=0.7, maybe={"size": 8}, given__colour="blue", kl__extra=5.0)
    history.ADDED["recipe.by_name.*.colour"] = "green"
    found = completed("recipe", EARLY)
    assert (found["rate"], found["limit"], found["marks"], found["kl"]["extra"]) == (0.25, 3, [9], 5.0)
    assert found["noise"] == {"kind": "none", "share": 0.7, "parts": {"left": {"size": 1, "colour": "red"}}}
    assert found["maybe"] == {"size": 8, "colour": "red"}
    assert found["given"] == {"size": 5, "colour": "blue"}
    assert found["by_name"] == {"one": {"size": 2, "colour": "green"}}
    assert completed("recipe", {**EARLY, "rate": 0.9})["rate"] == 0.9  # the record's own value
    assert completed("recipe", {**EARLY, "limit": None})["limit"] is None


def test_a_section_that_the_history_gives_as_a_whole(grown):
    grown(noise={"kind": "normal"}, noise__parts={})
    assert completed("recipe", EARLY)["noise"] == {"kind": "normal", "share": 0.1, "parts": {}}


def test_a_key_without_default_stays_out(grown):
    assert "samples" not in completed("recipe", {"old": {"depth": 7}})
    assert completed("recipe", {"by_name": {"one": {}}})["by_name"] == {"one": {"colour": "red"}}
    assert completed("recipe", {"old": {}})["old"] == {"depth": 1, "width": 3}


def test_defaults_are_not_shared_between_records(grown):
    completed("recipe", EARLY)["weights"]["x"] = 2.0
    assert completed("recipe", EARLY)["weights"] == {"x": 1.0}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"gamma2": 0.5}, [("recipe.gamma2", 0.5)]),
        ({"gamma2": None}, []),
        ({"old": {"depth": 7, "height": 1}}, [("recipe.old.height", 1)]),
        ({"old": {"depth": 7, "height": None}}, []),
        ({"by_name": {"one": {"size": 2, "shape": []}}}, [("recipe.by_name.one.shape", [])]),
        ({"weights": {"x": 1.0, "any": 2.0}}, []),
        ({"more": {"a": False}}, [("recipe.more", {"a": False})]),
    ],
)
def test_what_the_schema_does_not_know_is_named_unless_it_is_null(grown, more, named):
    assert unknown("recipe", {**EARLY, **more}) == named
    kept = completed("recipe", {**EARLY, **more})
    assert ("gamma2" in kept, "height" in kept["old"]) == ("gamma2" in str(named), "height" in str(named))


@pytest.mark.parametrize("damage", [None, 3, "text", [1, 2], {"old": 3, "by_name": [1], "given": "x", "kl": None}])
def test_damage_stays_as_it_is(grown, damage):
    found = completed("recipe", damage)
    assert isinstance(damage, dict) or found == damage
    assert unknown("recipe", damage) == []
    if isinstance(damage, dict):
        assert {key: found[key] for key in damage} == damage


def test_what_is_no_part_of_a_run_is_not_compared():
    (run,) = runs_of("demo", "ranks=[8]", "seeds=[0]")
    section = run.resolved()["recipe"]
    assert completed("recipe", {**section, "stages": {"first": 2}, "seeds": [1]}) == section
    assert completed("recipe", section) == section
    assert completed("rules", run.resolved()["rules"]) == run.resolved()["rules"]
    assert completed("scale", run.resolved()["scale"]) == run.resolved()["scale"]


@pytest.mark.parametrize(
    ("there", "here", "found"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ("a.c", 2, 3)),
        ({"a": {"b": 1}}, {"a": None}, ("a", {"b": 1}, None)),
        ({"a": None}, {"a": {"b": 1}}, ("a", None, {"b": 1})),
        ({"a": {}}, {"a": {"b": 1}}, ("a.b", history.MISSING, 1)),
        ({"a": 1, "b": 2}, {"a": 1}, ("b", 2, history.MISSING)),
        ({"a": {1: 0.5}}, {"a": {1: 0.25}}, ("a.1", 0.5, 0.25)),
        ({"a": 1.0, "b": [1, 2]}, {"b": [1, 2], "a": 1}, None),
    ],
)
def test_the_first_difference_is_seen_from_both_sides(there, here, found):
    assert first_difference(there, here) == found


def again(tmp_path, record):
    """The run that a record describes, planned by today's code."""
    grid = {"name": record["sweep"], "ranks": [record["rank"]], "batch_sizes": [record["batch_size"]]}
    own = completed("recipe", record["recipe"])  # with what keys that were added later meant then
    recipe = grid | {"seeds": [record["seed"]], "steps": record["steps"], **own, "rules": record["rules"]}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(record["scale"]))
    (run,) = plan(load_experiment(tmp_path / "again.yaml", [f"scale={tmp_path / 'scale.yaml'}"]))
    return run


def test_a_run_recorded_by_an_earlier_version_is_still_the_same_run(tmp_path):
    """A real run.yaml from before run.yaml had a format. It lacks most of OpenRLHF's arguments."""
    record = yaml.safe_load(RECORDED.read_text())
    assert "format" not in record
    run = again(tmp_path, record)
    (tmp_path / "run.yaml").write_text(RECORDED.read_text())
    check_identity(tmp_path, run)
    assert (run.run_id, run.trainable_params, run["lr"]) == ("r8-b16-s0", 63488, 0.0008660254037844386)


CHANGES = [
    ("  samples_per_prompt: 8\n", "  samples_per_prompt: 4\n", "with recipe.samples_per_prompt=4, and this one has 8"),
    ("    value: 0.0008660254037844386\n", "    value: 0.0008660254037844387\n", "with derived.lr.value=0.000866"),
    ("      - 384\n", "      - 385\n", "with scale.model.modules.gate_proj="),
    ("    rank: 32\n", "", None),  # absent: its default
    ("    layers: 2\n", "    layers: 3\n", "with scale.model.layers=3, and this one has 2"),
    ("    layers: 2\n", "", "without scale.model.layers, and this one has 2"),
    ("    mixture: null\n", "    mixture:\n      seed: 3\n", "with scale.data.mixture={"),
    ("    mixture: null\n", "", None),
    ("    rule: equal_kl\n", "    rule: reworded\n", None),  # under `derived`
    (
        "  lr:\n    rule: equal_kl\n",
        "  lr:\n    rule: other\n",
        "with rules.lr.rule='other', and this one has 'equal_kl'",
    ),
    ("    source: reference point\n", "    source: said in other words\n", None),
    ("    formula: x0 sqrt", "    formula: X sqrt", None),
    ("sweep: demo\n", "format: 1\nsweep: demo\n", None),
    ("sweep: demo\n", "format: 2\nsweep: demo\n", "format=2, allowed: at most 1 (a newer rankrl wrote it"),
    ("  gamma: 1.0\n", "  gamma: 1.0\n  tau: 0.5\n", "recipe.tau=0.5, a key unknown here (another rankrl wrote it"),
    ("  gamma: 1.0\n", "  gamma: 1.0\n  tau: null\n", None),
    ("  gamma: 1.0\n", "  gamma: 1.0\n  noise: {share: 0.1}\n", "recipe.noise={'share': 0.1}, a key unknown here"),
    ("  name: nano\n", "  name: nano\n  fabric: ring\n", "scale.fabric='ring', a key unknown here"),
    (
        "rules:\n",
        "rules:\n  noise: {rule: constant, value: 0.1}\n",
        "rules.noise={'rule': 'constant', 'value': 0.1}, a key",
    ),
    ("recipe:\n", "recipe: {\n", "is unreadable; move"),
]


@pytest.mark.parametrize(("was", "changed", "refused"), CHANGES)
def test_what_a_record_may_say_and_lack(tmp_path, was, changed, refused):
    run = again(tmp_path, yaml.safe_load(RECORDED.read_text()))
    text = RECORDED.read_text()
    assert was in text
    (tmp_path / "run.yaml").write_text(text.replace(was, changed, 1))
    if refused is None:
        check_identity(tmp_path, run)
        return
    with pytest.raises(ValueError) as error:
        check_identity(tmp_path, run)
    assert refused in str(error.value) and "\n" not in str(error.value)


def test_a_derived_knob_that_the_record_lacks_is_not_compared(tmp_path):
    record = yaml.safe_load(RECORDED.read_text())
    run = again(tmp_path, record)
    del record["derived"]["warmup"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    check_identity(tmp_path, run)
    record["rules"]["warmup"]["value"] = 0.2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(ValueError, match=r"with rules.warmup.value=0.2, and this one has None"):
        check_identity(tmp_path, run)


AS_RECORDED = (
    "warmup_offset=0",
    "rules.alpha={rule: power, exponent: 0}",
    "rules.lr={rule: equal_kl, c: 4}",
    "rules.max_norm.rule=gradient_scale",
    "rules.warmup.rule=by_rank",
)
"""What a recipe of today needs to continue a sweep of rankrl 0.1 (CHANGELOG.md)."""


def test_a_run_of_before_goes_on_with_its_own_values_and_no_others(tmp_path):
    (tmp_path / "run.yaml").write_text(RECORDED.read_text())
    grid = ("ranks=[8]", "seeds=[0]")
    (run,) = runs_of("demo", *grid, *AS_RECORDED)
    check_identity(tmp_path, run)
    assert (run["lr"], run["warmup"], run["max_norm"], run.recipe.warmup_offset) == (0.0008660254037844386, 0.03, 2, 0)
    for left_out in range(len(AS_RECORDED)):
        (run,) = runs_of("demo", *grid, *AS_RECORDED[:left_out], *AS_RECORDED[left_out + 1 :])
        with pytest.raises(ValueError, match=r"holds a run with (recipe\.warmup_offset=0|rules\.|derived\.)"):
            check_identity(tmp_path, run)


@pytest.mark.parametrize(("shape", "meant"), [("constant", 0.05), ("adaptive", None)])
def test_an_adaptive_schedule_of_before_keeps_its_horizon_in_steps(shape, meant):
    assert completed("recipe", {"kl_schedule": {"shape": shape}})["kl_schedule"]["horizon_share"] == meant
    own = {"shape": shape, "horizon_steps": 50.0, "horizon_share": 0.25}
    assert completed("recipe", {"kl_schedule": own})["kl_schedule"]["horizon_share"] == 0.25
    assert completed("recipe", {})["kl_schedule"]["horizon_share"] == 0.05


def test_run_yaml_begins_with_its_format():
    (run,) = runs_of("demo", "ranks=[8]", "seeds=[0]")
    assert list(run.resolved())[:2] == ["format", "sweep"] and run.resolved()["format"] == 1
