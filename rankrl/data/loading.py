"""Loads the items of a scale from a generated task, or from JSONL or Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankrl.data import nano
from rankrl.data.items import Item
from rankrl.recipe.scale import Data


def load_items(data: Data) -> tuple[list[Item], list[Item]]:
    """(training items, evaluation items) of a scale, with no prompt in both.

    Raises ValueError, one line, for a missing file or column, too few items, an item_id that occurs
    twice, or a prompt that is in both.
    """
    if data.train != data.evaluation and {data.train, data.evaluation} & set(nano.TASKS):
        raise ValueError(
            f"data.evaluation: got {data.evaluation!r} with data.train={data.train!r}, allowed: the same task for both, or "
            f"files ({', '.join(nano.TASKS)} are tasks)"
        )
    if data.train in nano.TASKS:
        return nano.splits(data.train_items, data.eval_items, data.train)
    train = read_items(Path(data.train), "data.train")[: data.train_items]
    evaluation = read_items(Path(data.evaluation), "data.evaluation")[: data.eval_items]
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


def read_items(path: Path, key: str) -> list[Item]:
    """The items in the rows {"prompt", "answer"} of a JSONL or Parquet file.

    "item_id" defaults to file name and row, "source" to the file name. `key` names the setting in
    errors. Raises ValueError, one line, for a missing or damaged file, or a row without both keys.
    """
    if not path.is_file():
        raise ValueError(
            f"{key}: got {str(path)!r}, allowed: nano, or an existing JSONL or Parquet file with the keys prompt and answer "
            f"(rankrl data SCALE --to {path.parent} builds it for a scale with data.mixture)"
        )
    items = []
    for number, row in _rows(path, key):
        try:
            prompt, answer = row["prompt"], row["answer"]
            if prompt is None or answer is None:
                raise TypeError("null")
            item_id = str(row.get("item_id", f"{key.partition('.')[2]}-{path.stem}-{number}"))
            items.append(Item(item_id, str(row.get("source", path.stem)), str(prompt), str(answer)))
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{key}: line {number} of {path} is no JSON object with prompt and answer ({error!r})"
            ) from error
    return items


def _rows(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """The rows of a file as (number from 1, row)."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path, key), 1)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{key}: line {number} of {path} is no JSON object with prompt and answer ({error!r})"
                ) from error


def _parquet_rows(path: Path, key: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{key}: {path} is no readable Parquet file ({type(error).__name__})") from error
    missing = sorted({"prompt", "answer"} - set(table.column_names))
    if missing:
        raise ValueError(
            f"{key}: got {path} with {table.column_names}, allowed: with the columns {' and '.join(missing)}"
        )
    kept = [name for name in ("item_id", "source", "prompt", "answer") if name in table.column_names]
    return table.select(kept).to_pylist()
