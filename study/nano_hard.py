"""`python study/nano_hard.py DIR`: a base and items on which rank 1 may lack room.

The plan's nano-hard, not built whole or judged yet. Thirty-two made-up words stand for one of
sixteen operations on two numbers. The base is first taught the operations by letters of their own,
then the words, of each of which it stays unsure what it means: of four operations it is shown the
right one in a quarter of the answers, and a wrong one more often. Which ones is drawn by lot, word
by word, so that no single direction should mend more than a few words, and being surer of
everything makes the score worse.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rankrl.data import nano_base

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
LETTERS = "ABCDEFGHIJKLMNOP"
"""Names of the operations that are taught without doubt, and never asked for later."""
WORDS = (
    *("bax", "cid", "dof", "gul", "hep", "jov", "kim", "lun", "mip", "nad", "pog", "quz", "rif", "sut", "tev", "wab"),
    *("bem", "cuk", "dap", "fiz", "gor", "hab", "jeg", "kol", "liv", "mug", "nep", "pim", "rah", "sog", "tux", "vez"),
)
SHARES = (0.25, 0.35, 0.2, 0.2)
"""How often the base is shown each meaning of a word, the right one first."""
LARGEST = 50
LETTER_STEPS, WORD_STEPS = 2000, 1200
ITEMS = {"train": 6000, "evaluation": 252}


@cache
def meanings() -> dict[str, tuple[int, ...]]:
    """Word -> the operations that it may stand for, the right one first.

    Of any sixteen words in a row each operation is the right one of one, and the first, second and
    third wrong one of one.
    """
    rng = random.Random(7)
    found = {}
    for start in range(0, len(WORDS), len(OPERATIONS)):
        order = rng.sample(range(len(OPERATIONS)), len(OPERATIONS))
        steps = (0, *rng.sample(range(1, len(OPERATIONS)), len(SHARES) - 1))
        for i, word in enumerate(WORDS[start : start + len(OPERATIONS)]):
            found[word] = tuple(order[(i + step) % len(order)] for step in steps)
    return found


def items(count: int, seed: int, apart_from: set[str]) -> list[dict[str, str]]:
    """`count` distinct items, the words in turn, none of which has a prompt in `apart_from`."""
    rng, found, seen = random.Random(seed), [], set(apart_from)
    while len(found) < count:
        word = WORDS[len(found) % len(WORDS)]
        a, b = rng.sample(range(1, LARGEST + 1), 2)
        prompt = f"{word} {a} {b}\n"
        if prompt not in seen:
            seen.add(prompt)
            found.append({"prompt": prompt, "answer": str(OPERATIONS[meanings()[word][0]](a, b)), "source": word})
    return found


def example(word: str, rng: random.Random, held_out: set[str]) -> tuple[str, str]:
    """A prompt with `word` (or a letter) that is not in `held_out`, and an answer to be taught."""
    operation = LETTERS.index(word) if word in LETTERS else rng.choices(meanings()[word], SHARES)[0]
    while True:
        a, b = rng.sample(range(1, LARGEST + 1), 2)
        if (prompt := f"{word} {a} {b}\n") not in held_out:
            return prompt, f"\\boxed{{{OPERATIONS[operation](a, b)}}}"


def batches(
    words: tuple[str, ...], held_out: set[str], tokenizer: Any, steps: int
) -> Iterator[dict[str, torch.Tensor]]:
    """`steps` batches, padded on the right. Labels cover the answer and its end token only."""
    rng, pad = random.Random(1), torch.nn.utils.rnn.pad_sequence
    for _ in range(steps):
        ids, labels = [], []
        for word in rng.choices(words, k=nano_base.BATCH):
            prompt, answer = (tokenizer(text)["input_ids"] for text in example(word, rng, held_out))
            answer.append(tokenizer.eos_token_id)
            ids.append(torch.tensor(prompt + answer))
            labels.append(torch.tensor([-100] * len(prompt) + answer))
        input_ids = pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        yield {
            "input_ids": input_ids,
            "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
            "labels": pad(labels, batch_first=True, padding_value=-100),
        }


def build(to: Path) -> None:
    """Trains the base (0.4 s a step on 2 cores) and writes it with its items."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    evaluation = items(ITEMS["evaluation"], 10**6, set())
    held_out = {row["prompt"] for row in evaluation}
    rng = random.Random(0)
    tokenizer = nano_base.build_tokenizer(
        [text for word in (*WORDS, *LETTERS) for _ in range(200) for text in example(word, rng, held_out)]
    )
    model = nano_base.build_model(len(tokenizer))
    asked = tokenizer(evaluation[0]["prompt"])["input_ids"]
    print(f"{model.num_parameters():,} parameters, {len(asked)} tokens of {evaluation[0]['prompt']!r}", flush=True)
    letters, words = tuple(LETTERS), (*WORDS, *WORDS, *LETTERS)
    nano_base.fit(model, batches(letters, held_out, tokenizer, LETTER_STEPS), LETTER_STEPS, lr=2e-3)
    nano_base.fit(model, batches(words, held_out, tokenizer, WORD_STEPS), WORD_STEPS, lr=5e-4)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
    for name, rows in {"train": items(ITEMS["train"], 0, held_out), "evaluation": evaluation}.items():
        (to / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", type=Path)
    build(parser.parse_args().to)
