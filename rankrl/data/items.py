"""Items: questions with exact answers, from the nano task or from JSONL files, and the order in which a run sees them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrl.recipe.scale import Data


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is the text the model continues, `answer` the exact gold answer."""

    item_id: str
    source: str
    prompt: str
    answer: str


def load_items(data: Data) -> tuple[list[Item], list[Item]]:
    """(train, evaluation) items of a scale, their prompts disjoint.

    Raises ValueError, one line, for a missing file or column, too few items, or a prompt that stands in both.
    """
    if (data.train == "nano") != (data.evaluation == "nano"):
        raise ValueError(
            f"data.evaluation: got {data.evaluation!r} with data.train={data.train!r}, allowed: nano for both or neither"
        )
    if data.train == "nano":
        from rankrl.data import nano

        return nano.splits(data.train_items, data.eval_items)
    train = read_jsonl(Path(data.train), "data.train")[: data.train_items]
    evaluation = read_jsonl(Path(data.evaluation), "data.evaluation")[: data.eval_items]
    for key, items, count in (("train", train, data.train_items), ("eval", evaluation, data.eval_items)):
        if len(items) < count:
            raise ValueError(f"data.{key}_items: got {count}, allowed: at most the {len(items)} items of the file")
    ids = [item.item_id for item in train + evaluation]
    if len(set(ids)) < len(ids):
        twice = min(item_id for item_id in set(ids) if ids.count(item_id) > 1)
        raise ValueError(
            f"data.train: got the item_id {twice!r} twice, allowed: one id per item of training and evaluation"
        )
    shared = {item.prompt for item in train} & {item.prompt for item in evaluation}
    if shared:
        raise ValueError(
            f"data.evaluation: got {len(shared)} prompts that also stand in data.train, for instance {min(shared)[:60]!r}"
        )
    return train, evaluation


def read_jsonl(path: Path, key: str) -> list[Item]:
    """Rows {"prompt", "answer"}; "item_id" defaults to file name and line, "source" to the file name."""
    if not path.is_file():
        raise ValueError(
            f"{key}: got {str(path)!r}, allowed: nano, or an existing JSONL file with the keys prompt and answer"
        )
    items = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                item_id = str(row.get("item_id", f"{key.partition('.')[2]}-{path.stem}-{number}"))
                items.append(Item(item_id, str(row.get("source", path.stem)), str(row["prompt"]), str(row["answer"])))
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{key}: line {number} of {path} is no JSON object with prompt and answer ({error!r})"
                ) from error
    return items


def revision(items: list[Item]) -> str:
    """A short hash of the items' content and order, for the record."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.item_id}\0{item.prompt}\0{item.answer}\0".encode())
    return digest.hexdigest()[:12]


def step_indices(seed: int, step: int, batch_size: int, items: int) -> list[int]:
    """Indices of the items of PPO step `step` (from 0): a stream of epochs, each a permutation drawn from (seed, epoch).

    Stateless, so the position in the data is the step alone; batch sizes of one seed read the same stream.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // items, (last - 1) // items + 1)
    stream = np.concatenate([np.random.default_rng([seed, epoch]).permutation(items) for epoch in epochs])
    start = first - epochs[0] * items
    return stream[start : start + batch_size].tolist()


def request_seed(*parts: int | str) -> int:
    """A sampling seed of 31 bits from, for instance, (run seed, step, item, sample)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
