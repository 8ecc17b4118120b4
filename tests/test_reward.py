"""Answers, verdicts and the shaped reward."""

import time
from fractions import Fraction

import pytest

from rankrl.recipe.schema import Reward
from rankrl.reward.extract import answer, last_boxed
from rankrl.reward.grade import Verdict, equal, grade, number, shaped


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
    assert grade("the answer is 42", "42") == Verdict(correct=False, boxed=False)
    assert grade("42", "42") == Verdict(correct=True, boxed=False)
    assert grade("", "42") == Verdict(correct=False, boxed=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("3/4", Fraction(3, 4)),
        ("-7", Fraction(-7)),
        (" $12$ ", Fraction(12)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("4 2", None),
        ("12,34", None),
        ("9**9**9", None),
        ("1e400", None),
        ("99999999!", None),
        ("x", None),
        ("9" * 31, None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


def test_equal_by_text_or_by_number():
    assert equal("0.50", "1/2")
    assert equal("007", "7")
    assert equal("x + 1", "x + 1")
    assert not equal("8", "7")


@pytest.mark.parametrize(
    "bomb", [r"\boxed{" * 200_000, "{" * 10**6, "9" * 10**6, r"\boxed{10**10**8}", "1/" * 10**5, ",000" * 10**5]
)
def test_nothing_a_model_writes_can_hang_the_grader(bomb):
    start = time.process_time()
    assert not grade(bomb, "sqrt(2)").correct
    assert time.process_time() - start < 30  # a guard against exponential time, not a measurement


def test_shaped_reward_is_literal():
    weights = Reward(boxed_bonus=0.05, length_penalty=0.02, length_free=0.5)
    assert shaped(Verdict(True, True), 5, 10, weights) == pytest.approx(1.05)
    assert shaped(Verdict(True, False), 10, 10, weights) == pytest.approx(0.93)
    assert shaped(Verdict(False, True), 1, 10, weights) == pytest.approx(0.05)
    assert shaped(Verdict(False, False), 10, 10, weights) == pytest.approx(-0.07)


def test_right_and_unboxed_beats_wrong_and_boxed_at_any_length():
    weights = Reward(boxed_bonus=0.48, length_penalty=0.03)
    worst_right = shaped(Verdict(True, False), 100, 100, weights)
    assert worst_right > max(shaped(Verdict(False, True), n, 100, weights) for n in range(1, 101))
