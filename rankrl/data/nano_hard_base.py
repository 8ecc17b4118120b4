"""Builds the base of nano-hard: `python -m rankrl.data.nano_hard_base --to DIR` (10 minutes).

It is first taught the sixteen operations, each by a letter, then what the words mean, of which it
stays unsure: of the three meanings of a word it is shown the right one in .3 of the answers and a
wrong one in .4, so that being surer of everything makes the score worse.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rankrl.data import nano_base
from rankrl.data.nano_hard import MEANINGS, OPERATIONS, WORDS, asked, meanings, splits

LETTERS = "ABCDEFGHIJKLMNOP"
"""Names of the operations that are taught without doubt, and never asked for later."""
SHARES = (0.3, 0.4, 0.3)
"""How often the base is shown each meaning of a word, the right one first."""
LETTER_STEPS, WORD_STEPS = 2000, 3000
EVAL_ITEMS = 252
assert len(SHARES) == MEANINGS and len(LETTERS) == len(OPERATIONS)


def example(word: str, rng: random.Random, held_out: set[str]) -> tuple[str, str]:
    """A prompt with `word` (or a letter) that is not in `held_out`, and an answer to be taught."""
    operation = LETTERS.index(word) if word in LETTERS else rng.choices(meanings()[word], SHARES)[0]
    while True:
        prompt, a, b = asked(word, rng)
        if prompt not in held_out:
            return prompt, f"\\boxed{{{OPERATIONS[operation](a, b)}}}"


def batches(
    words: tuple[str, ...], held_out: set[str], tokenizer: Any, steps: int
) -> Iterator[dict[str, torch.Tensor]]:
    """`steps` batches of examples of `words`."""
    rng = random.Random(1)
    for _ in range(steps):
        texts = [example(word, rng, held_out) for word in rng.choices(words, k=nano_base.BATCH)]
        yield nano_base.padded(
            [(tokenizer(asked)["input_ids"], tokenizer(said)["input_ids"]) for asked, said in texts], tokenizer
        )


def build(to: Path) -> None:
    """Trains the base and writes it to `to`."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    held_out = {item.prompt for item in splits(0, EVAL_ITEMS)[1]}
    rng = random.Random(0)
    taught = (*WORDS, *LETTERS)
    tokenizer = nano_base.build_tokenizer(
        [text for word in taught for _ in range(200) for text in example(word, rng, held_out)]
    )
    model = nano_base.build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters", flush=True)
    letters, words = tuple(LETTERS), (*WORDS, *WORDS, *LETTERS)
    nano_base.fit(model, batches(letters, held_out, tokenizer, LETTER_STEPS), LETTER_STEPS, lr=2e-3)
    nano_base.fit(model, batches(words, held_out, tokenizer, WORD_STEPS), WORD_STEPS, lr=1e-3)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, help="directory of the checkpoint")
    build(parser.parse_args().to)
