"""Words on the command line and values of YAML files mean what was typed."""

import json
import os
from pathlib import Path

import pytest
from conftest import ROOT

from rankrl.cli import main
from rankrl.recipe.load import load_experiment, load_scale, scale_of_words
from rankrl.recipe.schema import Recipe
from rankrl.recipe.typed import described, kind_of, literal, typed_word, typed_yaml

DEMO = ROOT / "recipes" / "demo.yaml"
AS_TYPED = ["Answer #1", "0123", "0012345", "4e12345", "on", "No", "~", "NULL", "1_000", "12:30:00", "a: b", "[x", "''",
            "{}", "2024-01-01", "!!int 5", "- x", "0x1F", ".inf", "*x", "&x y", "'quoted'", '"', "back\\slash", "%",
            "${x}", "$x$ in ${y}$ \\\\${z}", "${oc", "two\nlines", " spaces ", "caf\u00e9 \u221a2", "\\boxed{}",
            "@", ""]  # fmt: skip


@pytest.mark.parametrize("typed", AS_TYPED)
def test_text_is_what_was_typed(typed):
    scale = scale_of_words(["nano", f"scale.data.instruction={typed}", f"scale.slurm.account={typed}"])
    assert (scale.data.instruction, scale.slurm.account) == (typed, typed)


def test_null_is_null_where_it_may_be_and_text_elsewhere():
    scale = scale_of_words(["nano", "scale.model.revision=null", "scale.deepspeed=null"])
    assert (scale.model.revision, scale.deepspeed) == (None, "null")


def test_text_in_lists_and_sections_is_text():
    slurm = scale_of_words(["nano", "scale.slurm={account: 0123, partition: no, flags: [--x, -0]}"]).slurm
    assert (slurm.account, slurm.partition, slurm.flags) == ("0123", "no", ["--x", "-0"])


def test_text_of_a_file_is_text(tmp_path):
    nano = (ROOT / "rankrl" / "scales" / "nano.yaml").read_text()
    slurm = "slurm:\n  account: 007\n  partition: off\n  time: null\n  flags: [--qos=1, -1]\n"
    nano = nano.replace("slurm:\n", slurm).replace("  path: embedded:nano\n", "  path: 4e12345\n  revision: 0123\n")
    (tmp_path / "mine.yaml").write_text(nano.replace("data:\n", "data:\n  instruction: 'In ${x} #1'\n"))
    scale = load_scale(str(tmp_path / "mine.yaml"))
    assert (scale.slurm.account, scale.slurm.partition, scale.slurm.time) == ("007", "off", None)
    assert (scale.model.path, scale.model.revision, scale.slurm.flags) == ("4e12345", "0123", ["--qos=1", "-1"])
    assert (scale.data.instruction, scale.data.thinking, scale.reference.lr) == ("In ${x} #1", None, 1e-3)


@pytest.mark.parametrize("text", ["Answer #1", "Use #hash and #tags", "a #1."])
def test_a_text_that_yaml_would_cut_is_refused(text, tmp_path):
    nano = (ROOT / "rankrl" / "scales" / "nano.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(nano.replace("data:\n", f"data:\n  instruction: {text}\n"))
    with pytest.raises(ValueError, match=f"data.instruction: got '{text}', allowed: text without # .*in quotes"):
        load_scale(str(tmp_path / "mine.yaml"))
    for fine, found in ((f'"{text}"', text), (f"'{text}' #x", text), ("Box it # so", "Box it"), ("a#b ## c", "a#b")):
        (tmp_path / "mine.yaml").write_text(nano.replace("data:\n", f"data:\n  instruction: {fine}\n"))
        assert load_scale(str(tmp_path / "mine.yaml")).data.instruction == found


def test_the_environment_can_still_be_named(monkeypatch):
    monkeypatch.setenv("MODELS", "/models")
    assert scale_of_words(["nano", "scale.model.path=${oc.env:MODELS}/a"]).model.path == "/models/a"


ARMS = """ranks: [1]
batch_sizes: [16]
seeds: [0]
steps: 3
arms:
  off: {steps: 4}
  no: &other {rules: {lr: 1e-4}}
  on: {correction: none}
  yes: {<<: *other, lr_shape: linear}
  n: {}
"""


def test_arms_keep_their_names(tmp_path):
    (tmp_path / "arms.yaml").write_text(ARMS)
    arms = load_experiment(tmp_path / "arms.yaml").arms
    assert list(arms) == ["off", "no", "on", "yes", "n"]
    assert [arm.steps for arm in arms.values()] == [4, 3, 3, 3, 3]
    assert [arm.rules.lr.value for arm in arms.values()][1::2] == [1e-4, 1e-4]
    assert (arms["on"].correction.method, arms["yes"].lr_shape) == ("none", "linear")
    assert list(load_experiment(DEMO, ["arms={no: {}, off: {}}"]).arms) == ["no", "off"]
    assert list(load_experiment(DEMO, ["arms.True.lr_shape=linear", "arms.yes.steps=2"]).arms) == ["True", "yes"]


REFUSED = {
    "arms={off: {}, 'off': {}}": "found duplicate key off",
    "arms={1: {}, true: {}}": "arms: got '1', allowed: a name of letters, digits and _",
    "correction=off": "correction.method: got 'off', allowed: none, token_clip",
    "advantage=yes": "advantage.method: got 'yes', allowed: gae",
    "critic=3": "critic: got 3, allowed: a section with the keys rank, alpha, lr",
    "critic.lr=fast": "critic.lr: got 'fast', allowed: a number, or null",
    "steps=": "steps: got None, allowed: a whole number",
    "steps=010": "steps: got '010', allowed: a decimal number without leading zeros",
    "seeds=[1,010]": "seeds: got '010', allowed: a decimal number without leading zeros",
    "rules.kl=5:30": "rules.kl: got '5:30', allowed: a decimal number",
    "ranks=4": "ranks: got 4, allowed: tuple[int, ...]",
    "scale.data.train_items=many": "data.train_items: got 'many', allowed: a whole number",
    "scale.data.thinking=maybe": "data.thinking: got 'maybe', allowed: true or false, or null",
    "scale.slurm=x": "slurm: got 'x', allowed: a section with the keys partition, account",
    "scale.slurm.gpus_per_node={a: 1}": "slurm.gpus_per_node: got {'a': 1}, allowed: a whole number",
    "scale.model.modules.q_proj=3": "model.modules.q_proj: got 3, allowed: list[int]",
    "rules.lr.table={010: 0.1}": "rules.lr.table.010: got '010', allowed: a decimal number",
    "scale.data={template: {a}}": "data.template: got '{a}', allowed: text (in YAML this is a list or a mapping",
    "scale.data.template=[": "data.template: got '[', allowed: chat, null, or a text with {}",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_wrong_word_names_key_value_and_type(word, capsys):
    assert main(["plan", str(DEMO), word]) == 2
    told = capsys.readouterr().err
    assert REFUSED[word] in told and told.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "0.5", "00.5", "-3", "1e3", "0x10", "1_000", "0e1"])
def test_decimal_numbers_pass(number):
    assert typed_word(Recipe, f"gamma={number}").split() == [f"gamma={number}", "..."]


def test_types_below_a_key():
    assert kind_of(Recipe, ["arms", "x", "critic", "lambda"]) == kind_of(Recipe, ["critic", "lambda"])
    assert described(kind_of(Recipe, ["critic", "lambda"])) == "a number, or null"
    assert kind_of(Recipe, ["no", "such", "key"]) is None
    assert typed_yaml(Recipe, "") == ""
    assert literal({"a": ["${x}", 1], "b": ("\\${x}",)}) == {"a": ["\\${x}", 1], "b": ["\\\\\\${x}"]}


PATHS = ["model.path", "data.train", "data.evaluation", "deepspeed"]


def test_home_is_expanded_in_paths_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in PATHS:
        found = scale_of_words(["nano", f"scale.{key}=~/x", *(["scale.data.train=y"] if "evaluation" in key else [])])
        for name in key.split("."):
            found = getattr(found, name)
        assert found == f"{tmp_path}/x"
    word = "scale.data.mixture={train: {gsm8k: 1}, evaluation: {math500: 2}, origin: {gsm8k: {path: ~/x}}}"
    assert scale_of_words(["nano", word]).data.mixture.origin["gsm8k"].path == f"{tmp_path}/x"
    assert scale_of_words(["nano", "scale.data.instruction=~/x"]).data.instruction == "~/x"
    (tmp_path / "mine.yaml").write_text((ROOT / "rankrl" / "scales" / "nano.yaml").read_text())
    assert load_experiment(DEMO, ["scale=~/mine.yaml"]).scale.name == "mine"


def test_home_is_expanded_in_options_and_names_of_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(DEMO.read_text())
    assert main(["plan", "~/mine.yaml", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert main(["adapter", "~/mine.yaml", "--rank", "2", "--to=~/map"]) == 0
    assert (tmp_path / "map" / "allocation.json").is_file()
    for words in (["tasks", "~/mine.yaml", "--runs=~/x"], ["status", "~/x"]):
        assert main(words) == 0
    assert (
        sorted(name for name in os.listdir(tmp_path) if name[0] != ".") == ["map", "mine.yaml", "x"]
        and Path("x/mine/plan.json").is_file()
    )
