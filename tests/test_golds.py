"""Golds: what is unwrapped, what no answer matches, and mathematics that must pass as it stands."""

from pathlib import Path

import pytest

from rankrl.data.gold import gold
from rankrl.reward.equality import judge

UNWRAPPED = ["<answer>17</answer>", "<think>8?</think>\n<answer> 17 </answer>", "= 17", "=17", "\\boxed 17", "\\boxed17",
             "$\\boxed 17$", '{ "ground_truth": "17"}', '\n{"ground_truth": 17.0}', "'17'", '"17"',
             "= '17'", "'= 17'", "== \\boxed 17", "=" * 5000 + "17", "\\boxed{\\boxed{17}}",
             "so\n#### <answer>17</answer>"]  # fmt: skip


@pytest.mark.parametrize("value", UNWRAPPED)
def test_what_stands_around_a_gold_is_taken_off(value):
    assert gold(value) == "17"


NO_GOLDS = [
    "['17']", "['17', '18']", "{'17'}", "(17,)", "Decimal('17')", "np.int64(17)", "[np.int64(17)]", '["17"]', "('17', '18')",
    "b'17'", "Fraction(1, 2)", "array([17])", "set()", "{'a': 1}", "<class 'int'>", "17</s>", "<s>17", "17<|im_end|>",
    "<|im_start|>17", "<think>17", "17[/INST]", "17</think>", "17<\uff5cend\uff5c>", "ans: 17", "A: 17", "A: -1/2",
    "result: 17", "Ans = 17",
    "## 17", "# 17", "\\boxed{17", "\\boxed x + 1", "= (17,)", "...", "?", "-", "\u2026", "=", "--", "'' ", "<answer></answer>",
    "1+" * 200 + "1", "a word " * 40, "f(" * 30 + "x" + ")" * 30,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_GOLDS)
def test_a_gold_that_no_answer_matches_is_refused(value):
    with pytest.raises(ValueError, match=r"^its answer is [^\n]*$"):
        gold(value)


PMATRIX = "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"
MATHEMATICS = [
    "(1,2)", "{1,2}", "\\{1,2\\}", "[0,1)", "(C)", "C", "x < 5", "A:", "A:B = 2:1", "A: B = 2:1", "3:2", "[1, 2]", "f'(x)",
    "(f'(x), g'(x))", "0<|x|<1", "-1", "\\infty", "\u221e", "\u2205", "+", "<", "\\fbox{3}", "17\\%", "$17$", "5!", "x'",
    "ab+bc+cd+da+ac", "2ab+2bc+2ca+abc+abd", f"{PMATRIX}, {PMATRIX}, {PMATRIX}",
    "sqrt(2)+sqrt(3)+sqrt(5)+sqrt(7)+sqrt(11)", "sin(x)+cos(x)+tan(x)+log(x)+exp(x)",
    "(1,2) or (2,1) or (3,4) or (4,3) or (5,6) or (6,5)", "AB, BC, CD, DE, EA",
    "Monday, Tuesday, Wednesday, Thursday, Friday", "there are no real solutions", "no solution", "1" * 201,
    ", ".join(map(str, range(100))), "+".join(f"x_{{{i}}}" for i in range(40)), "12 hours 30 minutes",
]  # fmt: skip


@pytest.mark.parametrize("value", MATHEMATICS)
def test_mathematics_passes_as_it_stands_and_is_right_as_an_answer(value):
    assert gold(value) == value
    assert judge(value, value) == "correct"


def test_lines_within_an_environment_are_one():
    assert gold("\\boxed{\\begin{pmatrix}\n 1 \\\\\n\n 2\n\\end{pmatrix}}") == PMATRIX
    assert gold(f"\n{PMATRIX}\n") == PMATRIX


def test_no_gold_that_was_judged_is_refused():
    lines = (Path(__file__).parent / "judged_pairs.tsv").read_text().splitlines()
    golds = {line.split("\t")[1] for line in lines if "\t" in line and not line.startswith("#")} - {""}
    refused = [answer for answer in golds if gold(answer) != answer.strip()]
    assert (len(golds) > 200, refused) == (True, [])
