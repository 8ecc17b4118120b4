"""The code of `rankrl data` on a million synthetic problems with planted copies and leaks.

    python bench/mixture.py [ROWS]      # half are written as GSM8K's rows, half as MATH's

It prints what is found, memory and seconds. Planted are exact copies (other case and spacing),
near-copies (a word or two replaced), evaluation items and near-copies of them (a word or a number
replaced), and decoys, which must stay: problems of a template that differ in one number, and
near-copies with another answer.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from rankrl.data.mixture import build
from rankrl.recipe.load import load_scale

KINDS = {
    "copy": 0.1,
    "near": 0.1,
    "decoy": 0.1,
    "template": 0.1,
}  # shares of the rows; all other rows are different problems
EVALUATION, LEAKS = 1000, 2000
TOPICS = ("apples", "boxes", "coins", "trains", "litres", "metres", "hours", "books", "marbles", "tickets")


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghilmnoprstuv", k=rng.randint(3, 9))) for _ in range(count)]


WORDS = words(0, 20_000)
CUMULATED = list(accumulate(1 / (rank + 10) for rank in range(len(WORDS))))  # a few words make up most of a text
DRAWN = random.Random(1).choices(WORDS, cum_weights=CUMULATED, k=1 << 20)


def problem(number: int) -> list[str]:
    """A problem of 20 to 100 words, three of them numbers, drawn from `number`."""
    rng = np.random.default_rng(number)
    text = [DRAWN[i] for i in rng.integers(len(DRAWN), size=rng.integers(20, 101)).tolist()]
    third = len(text) // 3
    for part, value in enumerate(rng.integers(2, 10_000, size=3).tolist()):
        text[part * third + value % third] = str(value)
    return text


def reworded(text: list[str], number: int) -> list[str]:
    """The problem with one word replaced, or two if it is long.

    The Jaccard index of the two texts is 0.71 or more.
    """
    rng = random.Random(-number - 1)
    text = list(text)
    places = [place for place, word in enumerate(text) if not word.isdigit()]
    for place in rng.sample(places, 1 + (len(text) > 60)):
        text[place] = rng.choice(("quite", "rather", "indeed"))
    return text


def renumbered(text: list[str]) -> list[str]:
    """The problem with another first number."""
    place = next(place for place, word in enumerate(text) if word.isdigit())
    return [*text[:place], str(int(text[place]) + 1), *text[place + 1 :]]


def train_rows(rows: int, evaluation: list[list[str]]) -> Iterator[tuple[str, str, str]]:
    """(kind, prompt, answer) of each training row."""
    copies = {kind: int(rows * share) for kind, share in KINDS.items()}
    own = rows - sum(copies.values()) - LEAKS
    for i in range(own):
        yield "own", " ".join(problem(i)) + ".", str(i)
    for i in range(copies["copy"]):
        yield "copy", "  ".join(problem(i)).upper() + "?", str(i)
    for i in range(own - copies["near"], own):
        yield "near", " ".join(reworded(problem(i), i)) + ".", str(i)
    for i in range(copies["decoy"]):
        j = copies["copy"] + i
        yield "decoy", " ".join(reworded(problem(j), j)) + ".", str(j + rows)
    for i in range(copies["template"]):
        topic = TOPICS[i % 10]
        yield (
            "template",
            f"Ann had {i} {topic} and lost half of the {topic} on her way home. How many are left?",
            str(i),
        )
    for i in range(LEAKS):
        text = evaluation[i % EVALUATION]
        near = reworded(text, i) if i % 2 else renumbered(text)
        yield "leak", " ".join(text if i < EVALUATION else near), str(i)


def write(directory: Path, rows: int) -> Counter[str]:
    """Writes the training rows, each at random to one of two files, and the evaluation items.

    Returns the number of training rows of each kind.
    """
    evaluation = [problem(10**9 + i) for i in range(EVALUATION)]
    rng, kinds = random.Random(0), Counter[str]()
    with (directory / "gsm8k.jsonl").open("w") as gsm8k, (directory / "math.jsonl").open("w") as math:
        for kind, prompt, answer in train_rows(rows, evaluation):
            kinds[kind] += 1
            if rng.random() < 0.5:
                gsm8k.write(json.dumps({"question": prompt, "answer": f"#### {answer}"}) + "\n")
            else:
                row = {"problem": prompt, "solution": f"\\boxed{{{answer}}}", "level": ""}
                math.write(json.dumps(row) + "\n")
    with (directory / "math500.jsonl").open("w") as file:
        for i, text in enumerate(evaluation):
            file.write(json.dumps({"problem": " ".join(text), "answer": str(i), "level": ""}) + "\n")
    return kinds


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        planted = write(directory, rows)
        scale = load_scale(
            "qwen3-8b",
            {"data": {"mixture": None}},
            {
                "data": {
                    "train_items": min(24_000, rows // 4),
                    "eval_items": EVALUATION,
                    "mixture": {
                        "train": {"gsm8k": 1, "math": 1},
                        "evaluation": {"math500": EVALUATION},
                        "origin": {s: {"path": str(directory / f"{s}.jsonl")} for s in ("gsm8k", "math", "math500")},
                    },
                }
            },
        )
        start, cpu = time.perf_counter(), time.process_time()
        build(scale, directory / "out", lambda scale: lambda prompt: True)
        spent, cpu = time.perf_counter() - start, time.process_time() - cpu
        sources = json.loads((directory / "out" / "card.json").read_text())["sources"]
        found = sum((Counter(source["dropped"]) for source in sources.values()), Counter())
    print(f"planted: {dict(planted)}")
    print(f"dropped: {dict(found)}")
    exact, near = found["copy of an evaluation item"], found["near-copy of an evaluation item"]
    print(f"exact    {found['duplicate']:,} of {planted['copy']:,}")
    print(f"near     {found['near-copy']:,} of {planted['near']:,}")
    print(f"leaks    {exact:,} exact, {near:,} near of {EVALUATION:,} each")
    print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, {cpu:.0f} CPU s, {spent:.0f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
