"""What a user's rows become: prompts in chat format, golds in known shapes, and files as they come.

What no run could use is refused with file and line, before any service starts.
"""

import gzip
import json
import os
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankrl.data.gold import gold
from rankrl.data.items import Item
from rankrl.data.loading import load_items, read_items
from rankrl.data.prompt import load_tokenizer, prompt_ids, prompt_text
from rankrl.data.ready import check_ready
from rankrl.data.turns import prompt_of, turns
from rankrl.doctor import assets
from rankrl.recipe.load import Experiment, load_scale
from rankrl.recipe.plan import plan
from rankrl.recipe.scale import Data
from rankrl.recipe.schema import Recipe
from rankrl.sweep import local

GOLDS = [
    ("17", "17"),
    (" 17\n", "17"),
    (17, "17"),
    (17.0, "17"),
    (-0.5, "-0.5"),
    (Decimal("2.50"), "2.50"),
    (1e22, "10000000000000000000000"),
    (10**400, "1" + "0" * 400),
    ("She has 3 + 14 = 17 eggs.\n#### 17", "17"),
    ("#### 5 is wrong\nso\n#### 1,234 ", "1,234"),
    ("We get $x = \\boxed{4}$, no:\n\n\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ("Thus #### \\boxed{7}", "7"),
    ({"ground_truth": "17", "style": "rule"}, "17"),
    ({"ground_truth": 3}, "3"),
    ({"ground_truth": "long\n\n#### 8"}, "8"),
    ('{"ground_truth": "17"}', "17"),
    ("x = 3 or x = 4", "x = 3 or x = 4"),
    ("{1, 2}", "{1, 2}"),
    ("True", "True"),
    ("12:30", "12:30"),
    ("Evelyn", "Evelyn"),
]


@pytest.mark.parametrize(("value", "answer"), GOLDS)
def test_a_gold_is_read_in_its_shape(value, answer):
    assert gold(value) == answer


NO_GOLDS = [
    True, False, None, float("nan"), float("inf"), "", "  ", "####", "so\n#### ", "\\boxed{}", "nan", "None", [], ["17"],
    {}, {"value": "17"}, {"ground_truth": None}, {"ground_truth": True}, {"ground_truth": {"ground_truth": "1"}},
    "{'ground_truth': '17'}", "She had 3, got 14 more, and now has 17 eggs", "The answer is 17", "Answer: 17",
    "17\n18", b"17",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_GOLDS, ids=repr)
def test_a_gold_that_no_answer_matches_is_refused(value):
    with pytest.raises(ValueError, match=r"^its answer is [^\n]*$"):
        gold(value)


USER, SYSTEM = {"role": "user", "content": "1+1?"}, {"role": "system", "content": "Be brief."}
SHOWN = {"role": "assistant", "content": "2"}


def test_turns_become_a_prompt_and_come_back():
    assert prompt_of([USER]) == prompt_of("1+1?") == prompt_of('[{"role":"user", "content":"1+1?"}]') == "1+1?"
    assert turns("1+1?") == [USER]
    assert turns(prompt_of([SYSTEM, USER])) == [SYSTEM, USER]
    assert turns(prompt_of((USER, SHOWN, USER))) == [USER, SHOWN, USER]
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "+1?"}]
    assert prompt_of([{"role": "user", "content": parts, "name": None, "tool_calls": []}]) == "1+1?"
    assert prompt_of(" [1, 2] is a list? ") == " [1, 2] is a list? "


NO_PROMPTS = {
    "": "is empty",
    " \n": "is empty",
    "[{'role': 'user', 'content': 'x'}]": "is the text of a list that is no JSON",
    "[{'content': 'x', 'role': 'user'}]": "is the text of a list that is no JSON",
    "array([{'role': 'user', 'content': 'x'}], dtype=object)": "is the text of a list that is no JSON",
    '[{"from": "human", "value": "x"}]': "without role and content",
}


@pytest.mark.parametrize("value", NO_PROMPTS, ids=repr)
def test_a_text_that_is_no_prompt_is_refused(value):
    with pytest.raises(ValueError, match=f"^its prompt .*{NO_PROMPTS[value]}"):
        prompt_of(value)


@pytest.mark.parametrize(
    "value",
    [
        [], None, 5, True, USER, ["1+1?"], [SYSTEM], [SHOWN], [USER, SHOWN], [USER, USER], [USER, SYSTEM], [SYSTEM, SHOWN],
        [SYSTEM, SYSTEM, USER], [{"role": "tool", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": " "}],
        [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
        [USER | {"tool_calls": [{"id": 1}]}], [{"from": "human", "value": "x"}], [[("role", "user"), ("content", "x")]],
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match=r"^its prompt [^\n]*$"):
        prompt_of(value)


def data(template=None, instruction=None):
    return Data("nano", "nano", 1, 1, template, instruction)


def test_a_conversation_goes_through_the_template():
    tokenizer = load_tokenizer(load_scale("nano").model)
    alone, two = prompt_of([USER]), prompt_of([SYSTEM, USER])
    assert prompt_text(tokenizer, data(), alone) == "1+1?"
    assert prompt_text(tokenizer, data(), two) == "Be brief.\n\n1+1?"
    assert prompt_text(tokenizer, data("Q: {} A:", "Box."), two) == "Q: Be brief.\n\n1+1?\n\nBox. A:"
    assert prompt_ids(tokenizer, data(), alone) == prompt_ids(tokenizer, data(), "1+1?")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    chat = data("chat", "Box.")
    assert prompt_text(tokenizer, chat, alone) == "<user>1+1?\n\nBox.<assistant>"
    assert prompt_text(tokenizer, chat, two) == "<system>Be brief.<user>1+1?\n\nBox.<assistant>"
    shown = prompt_of([USER, SHOWN, USER])
    assert prompt_text(tokenizer, chat, shown) == "<user>1+1?<assistant>2<user>1+1?\n\nBox.<assistant>"


ROWS = [
    {"prompt": [USER], "answer": {"ground_truth": "2", "style": "rule"}, "item_id": None, "source": None},
    {"prompt": [SYSTEM, {"role": "user", "content": "2+2?"}], "answer": {"ground_truth": "4", "style": "rule"}},
]
ITEMS = [
    Item("train-a-1", "a", "1+1?", "2"),
    Item("train-a-2", "a", json.dumps([SYSTEM, {"role": "user", "content": "2+2?"}]), "4"),
]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.jsonl.gz", "a.JSONL.GZ", "a.parquet", "a.PARQUET"])
def test_a_file_is_read_whatever_its_ending(name, tmp_path):
    path = tmp_path / name
    if "parquet" in name.lower():
        pq.write_table(pa.Table.from_pylist([{"item_id": None, "source": None, **row} for row in ROWS]), path)
    else:
        path.write_bytes(gzip.compress(TEXT.encode()) if "gz" in name.lower() else TEXT.encode())
    assert read_items(path, "data.train") == ITEMS


def test_whole_numbers_name_an_item(tmp_path):
    rows = [{"prompt": f"{i}+1?", "answer": i + 1.0, "item_id": name} for i, name in enumerate([7, 8.0, None, "x"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(item.item_id, item.answer) for item in read_items(tmp_path / "a.jsonl", "data.evaluation")]
    assert found == [("7", "1"), ("8", "2"), ("evaluation-a-3", "3"), ("x", "4")]


def test_a_mark_of_utf8_and_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + TEXT.replace("\n", "\n\n"), encoding="utf-8")
    assert [item.item_id for item in read_items(tmp_path / "a.jsonl", "data.train")] == ["train-a-1", "train-a-3"]


GOOD = '{"prompt": "a", "answer": "1"}\n'
DAMAGED = {
    "latin": ((GOOD + '{"prompt": "gr\u00fcn", "answer": "2"}\n').encode("latin1"), "line 2 of .*no UTF-8 text .*iconv"),
    "utf16": (GOOD.encode("utf-16"), "a.jsonl is UTF-16 text, allowed: JSONL, one JSON object a line.*iconv -f UTF-16"),
    "cut off": (gzip.compress((GOOD * 20).encode())[:-9], "damaged after line"),
    "a list": (b"[\n" + GOOD.encode(), "a.jsonl is one JSON array, allowed: JSONL, one JSON object a line"),
    "no answer": ((GOOD + '{"prompt": "b", "solution": "1"}\n').encode(), r"line 2 of .*it has 'prompt', 'solution'"),
    "number": ((GOOD + '{"prompt": 5, "answer": "1"}\n').encode(), "line 2 of .*its prompt is 5"),
    "printed": ((GOOD + '{"prompt": "[{\'role\': \'user\'", "answer": "1"}\n').encode(), "line 2 of .*the text of a list"),
    "gold": ((GOOD + '{"prompt": "b", "answer": NaN}\n').encode(), "line 2 of .*its answer is nan"),
    "golds": ((GOOD + '{"prompt": "b", "answer": true}\n' * 3).encode(), r"line 2 of .*True.*\(2 more rows are refused\)"),
    "id": ((GOOD + '{"prompt": "b", "answer": "1", "item_id": ["x"]}\n').encode(), r"line 2 of .*its item_id is \['x'\]"),
    "surrogate": ((GOOD + '{"prompt": "\\ud800", "answer": "1"}\n').encode(), "line 2 of .*surrogates not allowed"),
    "two answers": (
        (GOOD + '{"prompt": "b", "answer": "1"}\n{"prompt": "a ", "answer": "2"}\n').encode(),
        r"has 1 prompts with two answers, for instance line 1 \('1'\) and line 3 \('2'\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_line(case, tmp_path):
    content, says = DAMAGED[case]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"^data.train: [^\n]*{says}[^\n]*$"):
        read_items(tmp_path / "a.jsonl", "data.train")


def test_one_prompt_with_one_answer_in_two_spellings_passes(tmp_path):
    (tmp_path / "a.jsonl").write_text(GOOD + '{"prompt": "a", "answer": "\\\\frac{2}{2}"}\n')
    assert len(read_items(tmp_path / "a.jsonl", "data.train")) == 2


def test_turns_of_the_assistant_need_a_chat_template(tmp_path):
    row = {"prompt": [USER, SHOWN, USER], "answer": 2}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "b.jsonl").write_text(GOOD)
    files = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), 1, 1)
    with pytest.raises(ValueError, match=r"line 1 of .*turns user, assistant, user: without data.template=chat"):
        load_items(Data(*files))
    assert turns(load_items(Data(*files, "chat"))[0][0].prompt) == [USER, SHOWN, USER]


def scale_of(tmp_path, rows, **changed):
    """nano with `rows` as training items and one other item for evaluation."""
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "e.jsonl").write_text('{"prompt": "7+7?", "answer": "14"}\n')
    files = {"train": str(tmp_path / "t.jsonl"), "evaluation": str(tmp_path / "e.jsonl")}
    layer = {"data": {**files, "train_items": len(rows), "eval_items": 1}}
    return load_scale("nano", layer, changed)


def sums(count):
    return [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(count)]


PLANTED = {
    "template": (sums(2), {"data": {"template": "chat"}}, "embedded:nano has no chat template"),
    "long": ([*sums(2), {"prompt": "1+" * 30, "answer": 1}], {}, "1 of 3 prompts of data.train are .* item train-t-3, has 60"),
    "empty": ([*sums(2), {"prompt": "", "answer": "1"}], {}, "line 3 of .*its prompt is empty"),
    "brace": ([*sums(2), {"prompt": "x", "answer": "3{"}], {}, r"1 of 3 golds are wrong even as an answer, for instance '3\{'"),
    "positions": (sums(2), {"lengths": {"response_tokens": 250}}, "lengths: got 274, allowed: at most 256"),
    "two": ([*sums(2), {"prompt": "0+1?", "answer": "2"}], {}, "for instance line 1 .* and line 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_doctor_finds_what_is_planted_and_a_sweep_refuses_it_before_ray(case, tmp_path, monkeypatch):
    rows, changed, says = PLANTED[case]
    scale = scale_of(tmp_path, rows, **changed)
    with pytest.raises(ValueError, match=says):
        assets.data(scale)
    monkeypatch.setattr(local, "prepare_process", lambda gpus: pytest.fail("services start"))
    recipe = Recipe(ranks=(1,), batch_sizes=(2,), seeds=(0,), steps=1, name="x")
    with pytest.raises(ValueError, match=says):
        local.sweep(plan(Experiment("x", {"": recipe}, scale)), tmp_path / "runs")
    assert sorted(os.listdir(tmp_path / "runs" / "x")) == [".sweep.lock", "plan.json"]


def test_a_few_golds_that_fail_are_a_warning(tmp_path):
    scale = scale_of(tmp_path, [*sums(40), {"prompt": "x", "answer": "3{"}])
    found = assets.data(scale)
    assert found.level == "warn"
    assert "data.train: 1 of 41 golds are wrong even as an answer, for instance '3{' of item train-t-41" in found.found


def test_a_tokenizer_that_is_not_here_is_told_and_a_damaged_one_refused(tmp_path):
    scale = scale_of(tmp_path, sums(2), model={"path": "no/such"})
    (said,) = check_ready(scale, load_items(scale.data))
    assert said == "prompts are not measured: the tokenizer of no/such is not here"
    (tmp_path / "model").mkdir()
    scale = scale_of(tmp_path, sums(2), model={"path": str(tmp_path / "model")})
    with pytest.raises(ValueError, match=r"model.path: got .*allowed: a directory with a tokenizer"):
        check_ready(scale, load_items(scale.data))


def test_a_template_that_refuses_a_system_turn_is_told(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(load_scale("nano").model)
    tokenizer.chat_template = (
        "{{ raise_exception('System role not supported') if messages[0].role == 'system' else 'x' }}"
    )
    monkeypatch.setattr("rankrl.data.ready.tokenizer_here", lambda *args: tokenizer)
    scale = scale_of(tmp_path, [{"prompt": [SYSTEM, USER], "answer": "2"}], data={"template": "chat"})
    with pytest.raises(ValueError, match=r"refuses item train-t-1 \(System role not supported\)"):
        check_ready(scale, load_items(scale.data))


def test_the_prompt_takes_one_place_in_a_template():
    with pytest.raises(ValueError, match=r"data.template: .*allowed: \{\} once"):
        data("Q: {} Answer in \\boxed{}.")
