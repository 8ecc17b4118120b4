"""The generated task `nano_hard`: made-up words that stand for operations on two numbers.

"bax 3 5" asks for the operation that `bax` stands for. Each of sixteen words has an operation of
its own, and two wrong meanings that the base takes it for as well (`nano_hard_base.py`). What is to
be learned is a fact for each word, so that no single direction should mend all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from rankrl.data.items import Item

NAME = "nano_hard"
OPERATIONS: tuple[Callable[[int, int], int], ...] = (
    lambda a, b: a + b,
    lambda a, b: a + b + 1,
    lambda a, b: a + b - 1,
    lambda a, b: a - b,
    lambda a, b: b - a,
    lambda a, b: a - b + 1,
    max,
    min,
    lambda a, b: a,
    lambda a, b: b,
    lambda a, b: a + 1,
    lambda a, b: b + 1,
    lambda a, b: a - 1,
    lambda a, b: b - 1,
    lambda a, b: 2 * a,
    lambda a, b: 2 * b,
)
WORDS = ("bax", "cid", "dof", "gul", "hep", "jov", "kim", "lun", "mip", "nad", "pog", "quz", "rif", "sut", "tev", "wab")
MEANINGS = 3
LARGEST = 24
TRAIN_SEED, EVAL_SEED = 0, 10**6


@cache
def meanings() -> dict[str, tuple[int, ...]]:
    """Word -> indices of the operations that it may stand for, the right one first.

    Each operation is the right one of one word, and the first and second wrong one of one.
    """
    rng = random.Random(7)
    order = rng.sample(range(len(OPERATIONS)), len(OPERATIONS))
    steps = (0, *rng.sample(range(1, len(OPERATIONS)), MEANINGS - 1))
    return {word: tuple(order[(i + step) % len(order)] for step in steps) for i, word in enumerate(WORDS)}


def asked(word: str, rng: random.Random) -> tuple[str, int, int]:
    """A prompt with `word`, and its two numbers, which differ."""
    a, b = rng.sample(range(1, LARGEST + 1), 2)
    return f"{word} {a} {b}\n", a, b


@cache
def splits(train_items: int, eval_items: int) -> tuple[list[Item], list[Item]]:
    """(training items, evaluation items), with all prompts distinct; words alternate.

    Raises ValueError if there are not that many distinct prompts.
    """
    most = len(WORDS) * LARGEST * (LARGEST - 1)
    if train_items + eval_items > 0.9 * most:  # the last ones would be drawn for long
        raise ValueError(f"data: nano_hard has {most} prompts, {train_items + eval_items} were asked for; use fewer")
    seen: set[str] = set()
    evaluation = _items(eval_items, EVAL_SEED, seen)
    return _items(train_items, TRAIN_SEED, seen), evaluation


def _items(count: int, seed: int, seen: set[str]) -> list[Item]:
    rng = random.Random(seed)
    found: list[Item] = []
    while len(found) < count:
        word = WORDS[len(found) % len(WORDS)]
        prompt, a, b = asked(word, rng)
        if prompt not in seen:
            seen.add(prompt)
            answer = str(OPERATIONS[meanings()[word][0]](a, b))
            found.append(Item(f"{word}-{seed + len(found)}", word, prompt, answer))
    return found
