"""The nano task: short arithmetic items of reasoning-gym with exact answers, asked for in `\\boxed{}`.

Item i of a reasoning-gym data set draws from `Random(seed + i)`, so neighbouring seeds share items. One seed and two index ranges
far apart are used instead, and evaluation prompts are removed from training (asserted by `splits`).
"""

from __future__ import annotations

from functools import cache

from rankrl.data.items import Item

SOURCES = {
    "sum2": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "sum3": ("chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
}
TRAIN_START, EVAL_START = 0, 10**6  # index ranges, a million items apart


def _draw(source: str, start: int, count: int) -> list[Item]:
    import reasoning_gym

    task, config = SOURCES[source]
    dataset = reasoning_gym.create_dataset(task, seed=start, size=count, **config)
    return [
        Item(f"{source}-{start + i}", source, f"{row['question']}\n", row["answer"]) for i, row in enumerate(dataset)
    ]


def _unique(items: list[Item], seen: set[str]) -> list[Item]:
    """The items whose prompt is not in `seen`, in order; adds them to `seen`."""
    return [item for item in items if item.prompt not in seen and not seen.add(item.prompt)]  # type: ignore[func-returns-value]


@cache
def splits(train_items: int, eval_items: int) -> tuple[list[Item], list[Item]]:
    """(train, evaluation) items, sources in turn, all prompts distinct and the two splits disjoint.

    Raises ValueError if the generators cannot give that many distinct prompts.
    """
    seen: set[str] = set()
    evaluation = _interleave(EVAL_START, eval_items, seen)
    train = _interleave(TRAIN_START, train_items, seen)
    assert not {i.prompt for i in evaluation} & {i.prompt for i in train}
    return train, evaluation


def pools(draws: dict[str, int], eval_items: int) -> tuple[list[Item], list[Item]]:
    """(what `draws` items per source hold, evaluation items): what the base model was made from and what it never saw."""
    seen: set[str] = set()
    evaluation = _interleave(EVAL_START, eval_items, seen)
    return [
        item for source, count in draws.items() for item in _unique(_draw(source, TRAIN_START, count), seen)
    ], evaluation


def _interleave(start: int, count: int, seen: set[str]) -> list[Item]:
    per_source = -(-count // len(SOURCES))
    columns = []
    for source in SOURCES:
        items = _unique(_draw(source, start, 4 * per_source + 200), seen)[:per_source]
        if len(items) < per_source:
            raise ValueError(
                f"data: the nano source {source!r} has only {len(items)} distinct prompts, {per_source} were asked for"
            )
        columns.append(items)
    return [item for row in zip(*columns, strict=True) for item in row][:count]
