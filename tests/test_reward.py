"""Answers, verdicts and the shaped reward."""

from fractions import Fraction

import pytest

from rankrl.recipe.schema import Reward
from rankrl.reward.extract import answer, last_boxed
from rankrl.reward.grade import Grader, Verdict, shaped
from rankrl.reward.number import number


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{4}, no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{{3}", None),
        ("42", None),
        (r"}}\boxed{7}{", "7"),
    ],
)
def test_last_balanced_box(text, content):
    assert last_boxed(text) == content


def test_unboxed_answers_are_whole_lines():
    assert answer("thinking\n 42 \n") == ("42", False)
    responses = ["the answer is 42", "42", "", r"so \boxed{42}", r"\boxed{41}", r"\boxed{}", r"42 \boxed{4"]
    assert Grader().grade(responses, ["42"] * 7) == [
        Verdict("unparsable", False),
        Verdict("correct", False),
        Verdict("unparsable", False),
        Verdict("correct", True),
        Verdict("wrong", True),
        Verdict("unparsable", True),
        Verdict("unparsable", False),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("3/4", Fraction(3, 4)),
        ("-7", Fraction(-7)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"1.5\times 10^{-2}", Fraction(3, 200)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("4 2", None),
        ("12,34", None),
        ("9**9**9", None),
        ("1e400", None),
        ("99999999!", None),
        ("x", None),
        ("9" * 41, None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


def test_shaped_reward_is_literal():
    weights = Reward(boxed_bonus=0.05, length_penalty=0.02, length_free=0.5)
    assert shaped(Verdict("correct", True), 5, 10, weights) == pytest.approx(1.05)
    assert shaped(Verdict("correct", False), 10, 10, weights) == pytest.approx(0.93)
    assert shaped(Verdict("wrong", True), 1, 10, weights) == pytest.approx(0.05)
    assert shaped(Verdict("wrong", False), 10, 10, weights) == pytest.approx(-0.07)


def test_right_and_unboxed_beats_wrong_and_boxed_at_any_length():
    weights = Reward(boxed_bonus=0.48, length_penalty=0.03)
    worst_right = shaped(Verdict("correct", False), 100, 100, weights)
    assert worst_right > max(shaped(Verdict("wrong", True), n, 100, weights) for n in range(1, 101))


@pytest.mark.parametrize(
    ("weights", "tokens", "term"),
    [
        (Reward(length="none"), 100, 0.0),
        (Reward(length_penalty=0.2, length_free=0.6), 60, 0.0),
        (Reward(length_penalty=0.2, length_free=0.6), 80, -0.1),
        (Reward(length="overlong", length_penalty=0.8, overlong_buffer_tokens=20), 80, 0.0),
        (Reward(length="overlong", length_penalty=0.8, overlong_buffer_tokens=20), 85, -0.2),
        (Reward(length="overlong", length_penalty=0.8, overlong_buffer_tokens=20), 100, -0.8),
    ],
)
def test_length_terms(weights, tokens, term):
    verdict = Verdict("correct", True)
    assert shaped(verdict, tokens, 100, weights) == pytest.approx(1 + 0.05 + term)
