"""Loads the items of a scale from a generated task, or from JSONL or Parquet files."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

from rankrl.data import nano, nano_hard
from rankrl.data.exact import number_text
from rankrl.data.gold import gold
from rankrl.data.items import Item
from rankrl.data.lines import rows
from rankrl.data.turns import prompt_of, turns, without_template
from rankrl.recipe.scale import Data
from rankrl.reward.grade import Grader

Asked = tuple[tuple[str, str], ...]
GENERATED = (*nano.TASKS, nano_hard.NAME)
"""Tasks whose items are made, not read."""


def load_items(data: Data) -> tuple[list[Item], list[Item]]:
    """(training items, evaluation items) of a scale, with no prompt in both.

    Raises ValueError, one line, for a missing file or column, too few items, an item_id that occurs
    twice, or a prompt that is in both, blanks around it aside.
    """
    if data.train != data.evaluation and {data.train, data.evaluation} & set(GENERATED):
        raise ValueError(
            f"data.evaluation: got {data.evaluation!r} with data.train={data.train!r}, allowed: the same task for both, or "
            f"files ({', '.join(GENERATED)} are tasks)"
        )
    if data.train == nano_hard.NAME:
        return nano_hard.splits(data.train_items, data.eval_items)
    if data.train in nano.TASKS:
        return nano.splits(data.train_items, data.eval_items, data.train)
    chats = data.template == "chat"
    train = read_items(Path(data.train), "data.train", chats)[: data.train_items]
    evaluation = read_items(Path(data.evaluation), "data.evaluation", chats)[: data.eval_items]
    for key, items, count in (("train", train, data.train_items), ("eval", evaluation, data.eval_items)):
        if len(items) < count:
            raise ValueError(f"data.{key}_items: got {count}, allowed: at most the {len(items)} items of the file")
    ids = Counter(item.item_id for item in train + evaluation)
    if max(ids.values()) > 1:
        twice = min(item_id for item_id, times in ids.items() if times > 1)
        raise ValueError(
            f"data.train: got the item_id {twice!r} twice, allowed: one id per item of training and evaluation"
        )
    shared = {asked(item.prompt) for item in train} & {asked(item.prompt) for item in evaluation}
    if shared:
        raise ValueError(
            f"data.evaluation: got {len(shared)} prompts that also stand in data.train, for instance "
            f"{min(shared)[-1][1][:60]!r}"
        )
    return train, evaluation


def read_items(path: Path, key: str, chats: bool = True) -> list[Item]:
    """The items in the rows {"prompt", "answer"} of a JSONL or Parquet file.

    "item_id" defaults to file name and row, "source" to the file name. `key` names the setting in
    errors; without `chats` there is no chat template, and so no turns of the assistant. Raises
    ValueError, one line, for a missing or damaged file, or a row whose prompt or answer is none.
    """
    if not path.is_file():
        raise ValueError(
            f"{key}: got {str(path)!r}, allowed: {', '.join(GENERATED)}, or an existing JSONL or Parquet file with the keys "
            f"prompt and answer (rankrl data SCALE --to {path.parent} builds it for a scale with data.mixture)"
        )
    items: list[Item] = []
    numbers, wrong = [], []
    for number, row in rows(path, key):
        try:
            items.append(_item(row, f"{key.partition('.')[2]}-{_stem(path)}-{number}", _stem(path), chats))
            numbers.append(number)
        except ValueError as error:
            wrong.append(f"line {number} of {path}: {error}")
    if wrong:
        others = f" ({len(wrong) - 1:,} more rows are refused)" if len(wrong) > 1 else ""
        raise ValueError(f"{key}: {wrong[0]}{others}")
    _refuse_contradictions(path, key, numbers, items)
    return items


def _item(row: dict[str, Any], item_id: str, source: str, chats: bool) -> Item:
    prompt = prompt_of(row["prompt"])
    if not chats:
        without_template(turns(prompt))
    item_id, source = (_name(row, key, default) for key, default in (("item_id", item_id), ("source", source)))
    item = Item(item_id, source, prompt, gold(row["answer"]))
    "".join((item_id, source, prompt, item.answer)).encode()  # ValueError for half a character, which JSON can hold
    return item


def _name(row: dict[str, Any], key: str, default: str) -> str:
    """The text under a key; `default` for null or no such key."""
    value = row.get(key)
    if isinstance(value, float | Decimal):  # what pandas makes of a column with nulls
        value = _whole(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int) or value == ""):
        raise ValueError(f"its {key} is {row[key]!r}, allowed: text, a whole number, or null")
    return default if value is None else str(value)


def _whole(value: float | Decimal) -> int | float | Decimal:
    """A whole number as an integer; another as it is."""
    try:
        return int(number_text(value))
    except ValueError:
        return value


def _stem(path: Path) -> str:
    """The name of a file without its endings: `a` of a.jsonl.gz."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def asked(prompt: str) -> Asked:
    """What a prompt asks: its turns (role, content) without blanks around them."""
    return tuple((turn["role"], turn["content"].strip()) for turn in turns(prompt))


def _refuse_contradictions(path: Path, key: str, numbers: list[int], items: list[Item]) -> None:
    """Raises ValueError, one line, if a prompt stands in a file with two answers that differ."""
    first: dict[Asked, tuple[int, str]] = {}
    differ = []
    for number, item in zip(numbers, items, strict=True):
        there, answer = first.setdefault(asked(item.prompt), (number, item.answer))
        if answer != item.answer:
            differ.append((there, answer, number, item.answer))
    with closing(Grader()) as grader:
        outcomes = grader.outcomes([(answer, other) for _, answer, _, other in differ])
    found = [pair for pair, outcome in zip(differ, outcomes, strict=True) if outcome in ("wrong", "unparsable")]
    if found:
        there, answer, number, other = found[0]
        raise ValueError(
            f"{key}: {path} has {len(found)} prompts with two answers, for instance line {there} ({answer[:60]!r}) and "
            f"line {number} ({other[:60]!r}), allowed: one answer to a prompt"
        )
