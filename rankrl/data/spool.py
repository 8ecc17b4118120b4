"""Keeps rows on disk while a mixture is built, so that memory does not grow with their text.

Texts are in SQLite, shingles in a flat file. 60 bytes a row stay in memory, as columns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankrl.data.sources import Question
from rankrl.data.text import hashed, key, mixed, numbers, shingles, tokens
from rankrl.recipe.require import require


@dataclass(frozen=True)
class Columns:
    """What is known of each row, by row number. Hashes have 64 bits."""

    source: np.ndarray
    """Index of the source, in order of precedence."""
    content: np.ndarray
    """Hash of everything in the row; the item is named after it."""
    prompt: np.ndarray
    """Hash of the prompt's tokens: equal for exact duplicates."""
    answer: np.ndarray
    """Hash of the answer's tokens."""
    numbers: np.ndarray
    """Hash of the numbers in the prompt."""
    shingles: np.ndarray
    """Number of distinct shingles of the prompt."""


@dataclass(frozen=True)
class Shingles:
    """The shingle sets of all rows, in a file at `path`. `count`: the size of each row's set."""

    path: Path
    count: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """The position in the file of each row's first shingle."""
        return np.cumsum(self.count) - self.count

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shingles of `rows`, flat; for each the index in `rows` of its row).

        The file is mapped anew in each call, so its pages do not add up in memory.
        """
        count = self.count[rows].astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return np.memmap(self.path, dtype=np.uint64, mode="r")[self.start[rows][owner] + within], owner


class Spool:
    """The questions of all rows, by row number, in SQLite. Fill it once, then read it."""

    def __init__(self, directory: Path):
        self.shingle_path = directory / "shingles.bin"
        self.table = sqlite3.connect(directory / "rows.sqlite")
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE rows (id INTEGER PRIMARY KEY, prompt TEXT, answer TEXT, level TEXT)",
        ):
            self.table.execute(statement)

    def fill(self, batches: Iterable[tuple[int, str, list[Question]]]) -> Columns:
        """Stores all batches (source index, source name, questions); returns the rows' columns.

        Raises ValueError, one line, if there is no question.
        """
        parts: list[list[np.ndarray]] = []
        rows = 0
        with self.shingle_path.open("wb") as file:
            for index, name, questions in batches:
                ids = range(rows, rows := rows + len(questions))
                self.table.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?, ?)",
                    ((i, *question) for i, question in zip(ids, questions, strict=True)),
                )
                words = [tokens(question.prompt) for question in questions]
                flat, count = shingles(words)
                file.write(flat.tobytes())
                parts.append([np.full(len(questions), index, np.int16), *_hashes(name, questions, words), count])
        self.table.commit()
        require(rows > 0, "data.mixture", "no question", "sources with verifiable answers")
        return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def questions(self, rows: np.ndarray, batch: int = 256) -> Iterator[tuple[int, Question]]:
        """(row number, question) of each of `rows`, in the given order."""
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch].tolist()
            marks = ",".join("?" * len(some))
            found = self.table.execute(f"SELECT id, prompt, answer, level FROM rows WHERE id IN ({marks})", some)
            by_id = {row[0]: Question(*row[1:]) for row in found}
            yield from ((row, by_id[row]) for row in some)

    def close(self) -> None:
        self.table.close()


def _hashes(name: str, questions: list[Question], words: list[list[str]]) -> list[np.ndarray]:
    columns = (
        [hashed("\0".join((name, *question))) for question in questions],
        [key(prompt) for prompt in words],
        [key(tokens(question.answer)) for question in questions],
        [numbers(prompt) for prompt in words],
    )
    return [np.array(column, dtype=np.uint64) for column in columns]


def drawn_order(content: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random number for each row, from the hash of its content and the seed alone.

    It does not depend on the row's position.
    """
    return mixed(content ^ mixed(np.full(1, seed, np.uint64)))
