"""`python study/nano_hard.py DIR`: a base and items on which rank 1 may lack room.

A first try at the plan's nano-hard, not built or judged yet. Sixteen made-up words stand for
operations on two numbers. The base is taught all of the operations, but of each word it is left
unsure which one it means: of four it is shown the right one in 3 of 10 answers. Which one is right
is drawn by lot, word by word, and another one for each, so that no single direction should mend
more than a few words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rankrl.data import nano_base

WORDS = ("bax", "cid", "dof", "gul", "hep", "jov", "kim", "lun", "mip", "nad", "pog", "quz", "rif", "sut", "tev", "wab")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "sum_and_one": lambda a, b: a + b + 1,
    "sum_less_one": lambda a, b: a + b - 1,
    "difference": lambda a, b: a - b,
    "other_difference": lambda a, b: b - a,
    "difference_and_one": lambda a, b: a - b + 1,
    "greater": max,
    "less": min,
    "first": lambda a, b: a,
    "second": lambda a, b: b,
    "first_and_one": lambda a, b: a + 1,
    "second_and_one": lambda a, b: b + 1,
    "first_less_one": lambda a, b: a - 1,
    "second_less_one": lambda a, b: b - 1,
    "twice_first": lambda a, b: 2 * a,
    "twice_second": lambda a, b: 2 * b,
}
MEANINGS = 4
RIGHT_SHARE = 0.3
LARGEST = 50
STEPS = 3000


def meanings() -> dict[str, list[str]]:
    """Word -> the operations that it may stand for, the right one first.

    Each operation is the right one of one word.
    """
    rng = random.Random(7)
    right = [*OPERATIONS]
    rng.shuffle(right)
    others = {name: [other for other in OPERATIONS if other != name] for name in OPERATIONS}
    return {word: [name, *rng.sample(others[name], MEANINGS - 1)] for word, name in zip(WORDS, right, strict=True)}


def items(count: int, seed: int, apart_from: set[str]) -> list[dict[str, str]]:
    """`count` distinct items, the words in turn, none of which has a prompt in `apart_from`."""
    rng, found, seen = random.Random(seed), [], set(apart_from)
    of_word = meanings()
    while len(found) < count:
        word = WORDS[len(found) % len(WORDS)]
        a, b = rng.sample(range(1, LARGEST + 1), 2)
        prompt = f"{word} {a} {b}\n"
        if prompt not in seen:
            seen.add(prompt)
            found.append({"input": prompt, "label": str(OPERATIONS[of_word[word][0]](a, b)), "source": word})
    return found


def answer(row: dict[str, str], rng: random.Random) -> str:
    """What the base is taught to say: the right meaning, or one of the word's others."""
    word, a, b = row["input"].split()
    of_word = meanings()[word]
    name = of_word[0] if rng.random() < RIGHT_SHARE else rng.choice(of_word[1:])
    return f"\\boxed{{{OPERATIONS[name](int(a), int(b))}}}"


def batches(rows: list[dict[str, str]], tokenizer: Any, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    rng, pad = random.Random(1), torch.nn.utils.rnn.pad_sequence
    prompts = [tokenizer(row["input"])["input_ids"] for row in rows]
    for _ in range(steps):
        ids, labels = [], []
        for i in rng.choices(range(len(rows)), k=nano_base.BATCH):
            said = tokenizer(answer(rows[i], rng))["input_ids"] + [tokenizer.eos_token_id]
            ids.append(torch.tensor(prompts[i] + said))
            labels.append(torch.tensor([-100] * len(prompts[i]) + said))
        input_ids = pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        yield {
            "input_ids": input_ids,
            "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
            "labels": pad(labels, batch_first=True, padding_value=-100),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("to", type=Path)
    to = parser.parse_args().to
    torch.manual_seed(0)
    torch.set_num_threads(2)
    held_out = items(256, 10**6, set())
    train = items(6000, 0, {row["input"] for row in held_out})
    pool = items(24000, 1, {row["input"] for row in held_out})
    tokenizer = nano_base.build_tokenizer([row["input"] + f"\\boxed{{{row['label']}}}" for row in pool])
    model = nano_base.build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, prompt of {len(tokenizer(pool[0]['input'])['input_ids'])} tokens")
    nano_base.fit(model, batches(pool, tokenizer, STEPS), STEPS, lr=2e-3)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
    for name, rows in {"train": train, "eval": held_out}.items():
        (to / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
