"""What is compared across rows and files, and asked of a model, before services start."""

import json

import pytest

from rankrl.data.items import Item
from rankrl.data.loading import load_items, read_items
from rankrl.data.ready import check_golds, check_positions, positions, respelled
from rankrl.recipe.load import load_scale
from rankrl.recipe.scale import Data
from rankrl.reward.equality import judge


def write(path, *rows):
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows))
    return str(path)


TURN = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "1+1?"}]
SPACED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1+1?\n"}]


@pytest.mark.parametrize(("train", "evaluation"), [("1+1?", "1+1? "), ("\n1+1?", "1+1?"), (TURN, SPACED)])
def test_a_prompt_in_both_files_is_found_whatever_blanks_are_around_it(train, evaluation, tmp_path):
    files = write(tmp_path / "a.jsonl", (train, "2")), write(tmp_path / "b.jsonl", (evaluation, "2"))
    with pytest.raises(ValueError, match=r"^data.evaluation: got 1 prompts that also .* instance '1\+1\?'$"):
        load_items(Data(*files, 1, 1, None))


def test_algebra_decides_whether_two_answers_contradict(tmp_path):
    rows = [("a", r"2\sin x\cos x"), (" a", r"\sin 2x"), ("b", "1/2"), ("b", "0.5")]
    assert len(read_items(write(tmp_path / "a.jsonl", *rows) and tmp_path / "a.jsonl", "data.train")) == 4
    write(tmp_path / "a.jsonl", *rows, ("a\n", r"\sin 3x"))
    with pytest.raises(ValueError, match=r"has 1 prompts with two answers, for instance line 1 .* and line 5"):
        read_items(tmp_path / "a.jsonl", "data.train")


GOLDS = [
    "17",
    "(1,2)",
    "{1,2}",
    "[0,1)",
    "x < 5",
    "C",
    "$5",
    "\\$5",
    "Evelyn",
    "1, 2, 3, ...",
    "3.",
    "5!",
    "12:30",
    "\\pi",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_a_good_gold_is_right_in_another_spelling(gold):
    assert respelled(gold) != gold
    assert judge(respelled(gold), gold) == "correct"


@pytest.mark.parametrize("gold", ["3{", "(" * 30, "1" * 400])
def test_a_gold_that_the_grader_cannot_read_is_told(gold):
    items = [Item(str(i), "a", str(i), str(i)) for i in range(40)] + [Item("x", "a", "x", gold)]
    (said,) = check_golds(items, "data.train")
    assert "1 of 41 golds are wrong even as an answer" in said and "of item x" in said
    with pytest.raises(ValueError, match=r"^data.train: 1 of 1 golds"):
        check_golds(items[-1:], "data.train")


POSITIONS = [
    ({}, None),
    ({"n_positions": 1024}, 1024),
    ({"max_position_embeddings": 100, "rope_scaling": None}, 100),
    ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 100),
    ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 100),
    ({"max_position_embeddings": 100, "rope_scaling": {"type": "longrope", "short_factor": [1]}}, 100),
    ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
    ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 200),
    ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 400),
    (
        {
            "max_position_embeddings": 100,
            "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 80},
        },
        320,
    ),
    ({"max_position_embeddings": 100, "rope_parameters": {"full": {"rope_type": "linear", "factor": 8.0}}}, 800),
    (
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 100,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        100,
    ),
]


@pytest.mark.parametrize(("config", "most"), POSITIONS)
def test_positions_are_those_that_the_engine_takes(config, most):
    assert positions(config) == most
    scale = load_scale("nano")
    asked = scale.lengths.prompt_tokens + scale.lengths.response_tokens
    if most is None or most >= asked:
        check_positions(scale, config)
    else:
        with pytest.raises(ValueError, match=rf"^lengths: got {asked}, allowed: at most {most}, the positions of "):
            check_positions(scale, config)
