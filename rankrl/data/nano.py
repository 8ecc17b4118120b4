"""Generated tasks: items of reasoning-gym with exact answers, which belong in `\\boxed{}`.

`nano` is short arithmetic, `sums` the same for a chat model, `gsm_symbolic` grade-school word
problems. Item i of a reasoning-gym data set draws from `Random(seed + i)`, so neighbouring seeds
share items. Training and evaluation therefore use two index ranges that are far apart, and
evaluation prompts are removed from training (asserted by `splits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from rankrl.data.items import Item

SOURCES = {
    "sum2": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "sum3": ("chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
}
ONE_DIGIT = {"sum1": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})}
TRAIN_START, EVAL_START = 0, 10**6  # index ranges, a million items apart


@dataclass(frozen=True)
class Task:
    """A generated task: where its questions come from and how they are put to the model."""

    sources: dict[str, tuple[str, dict[str, Any]]]
    """Source name -> (generator of reasoning-gym, its configuration)."""
    prompt: str
    """Template around the {question}, or around the bare {expression} of a sum."""
    few: bool = False
    """Whether distinct prompts are scarce; those drawn in excess then go to the other split."""


NANO = Task(SOURCES, "{question}\n")
TASKS = {
    "nano": NANO,
    "sums": Task(ONE_DIGIT, "What is {expression}? Answer as \\boxed{{number}}.", few=True),
    "gsm_symbolic": Task({"gsm_symbolic": ("gsm_symbolic", {})}, "{question} Answer as \\boxed{{number}}."),
}


def _draw(task: Task, source: str, start: int, count: int) -> list[Item]:
    import reasoning_gym

    generator, config = task.sources[source]
    dataset = reasoning_gym.create_dataset(generator, seed=start, size=count, **config)
    prompts = [
        task.prompt.format(question=row["question"], expression=row["metadata"].get("expression")) for row in dataset
    ]
    return [
        Item(f"{source}-{start + i}", source, prompt, row["answer"])
        for i, (prompt, row) in enumerate(zip(prompts, dataset, strict=True))
    ]


def _unique(items: list[Item], seen: set[str]) -> list[Item]:
    """The items whose prompt is not in `seen`, in order; adds them to `seen`."""
    return [item for item in items if item.prompt not in seen and not seen.add(item.prompt)]  # type: ignore[func-returns-value]


@cache
def splits(train_items: int, eval_items: int, name: str = "nano") -> tuple[list[Item], list[Item]]:
    """(training items, evaluation items) of a task, with all prompts distinct; sources alternate.

    Raises ValueError if the generators cannot give that many distinct prompts.
    """
    seen: set[str] = set()
    evaluation = _interleave(TASKS[name], EVAL_START, eval_items, seen)
    train = _interleave(TASKS[name], TRAIN_START, train_items, seen)
    assert not {i.prompt for i in evaluation} & {i.prompt for i in train}
    return train, evaluation


def pools(draws: dict[str, int], eval_items: int) -> tuple[list[Item], list[Item]]:
    """(items that the nano base was trained on, evaluation items that it never saw).

    `draws`: source -> number of items drawn, before duplicates are dropped.
    """
    seen: set[str] = set()
    evaluation = _interleave(NANO, EVAL_START, eval_items, seen)
    return [
        item for source, count in draws.items() for item in _unique(_draw(NANO, source, TRAIN_START, count), seen)
    ], evaluation


def _interleave(task: Task, start: int, count: int, seen: set[str]) -> list[Item]:
    per_source = -(-count // len(task.sources))
    columns = []
    for source in task.sources:
        drawn = _draw(task, source, start, 4 * per_source + 200)
        items = _unique(drawn, set(seen) if task.few else seen)[:per_source]
        seen.update(item.prompt for item in items)
        if len(items) < per_source:
            raise ValueError(
                f"data: the source {source!r} has only {len(items)} distinct prompts, {per_source} were asked for"
            )
        columns.append(items)
    return [item for row in zip(*columns, strict=True) for item in row][:count]
