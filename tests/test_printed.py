"""Prompts that are the text of turns: JSON is read, what was printed otherwise is refused."""

import json

import pytest

from rankrl.data.turns import prompt_of, turns

USER, SYSTEM = {"role": "user", "content": "1+1?"}, {"role": "system", "content": "Be brief."}
BACKWARD = '[{"content": "1+1?", "role": "user"}]'


@pytest.mark.parametrize(
    "text",
    [
        BACKWARD, f" {BACKWARD}\n", json.dumps(USER), json.dumps({"messages": [USER]}), json.dumps([{"name": None, **USER}]),
        json.dumps({"id": 1, "conversations": [USER]}), json.dumps([USER], indent=2),
    ],
)  # fmt: skip
def test_turns_in_json_are_read(text):
    assert prompt_of(text) == "1+1?"
    assert turns(prompt_of(json.dumps({"messages": [SYSTEM, USER]}))) == [SYSTEM, USER]


@pytest.mark.parametrize(
    "text",
    [
        str([USER]), str(USER), str({"messages": [USER]}), str([{"content": "it's", "role": "user"}]), "['What is 2+2?']",
        '["What is 2+2?"]', "['a', 'b']", "[{'role': 'user', 'content': 'x'}\n {'role': 'user', 'content': 'y'}]",
        "array([{'content': 'x', 'role': 'user'}],\n      dtype=object)", f"array({BACKWARD})", "array(['1+1?'], dtype=object)",
        "[{'from': 'human', 'value': 'x'}]", "[{'role': 'user', 'content': 'cut o", str([{"role": "user", "content": "\\sqrt"}]),
        "[{'role': 'user', 'content': '" + "x" * 30_000 + "'}]", '[{"role": "user", "content": "a", "content": "b"}]',
    ],
)  # fmt: skip
def test_what_was_printed_is_refused(text):
    with pytest.raises(ValueError, match=r"^its prompt is the text of a list that is no JSON[^\n]*$"):
        prompt_of(text)


@pytest.mark.parametrize(
    "text",
    [
        '[{"from": "Paris"}] is a list of trips. How many?', '[{"role": "user", "content": "x"}] has how many turns?',
        "[1, 2]", "[1, 2] or [3]", "{1, 2}", '{"from": "Paris"}', '{"a": 1}', "array([1, 2])", "f(x) = [x]", "[", "[]", "{}",
        "[" * 500 + "]" * 500, "{'a': __import__('os')}", "[\\frac{1}{2}, 'x']", '[{"from": "Paris"}]',
        "[9" + "**9" * 9 + "]",
    ],
)  # fmt: skip
def test_a_question_that_looks_like_a_list_is_text(text):
    assert prompt_of(text) == text
    assert turns(prompt_of(text)) == [{"role": "user", "content": text}]


@pytest.mark.parametrize("content", ['[{"role": "user"}]', '[{"role": "user", "content": "x"}]', '[{"role": "a"}] is?'])
def test_a_turn_whose_content_looks_like_turns_comes_back(content):
    turn = {"role": "user", "content": content}
    assert turns(prompt_of([turn])) == turns(prompt_of(json.dumps(turn))) == [turn]
