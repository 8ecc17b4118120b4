"""`rankrl data SCALE --to DIR`: the training and evaluation items of a scale, drawn from its sources, with a card.

What is drawn depends on the rows and the scale alone: not on the order of rows or files, nor on the machine.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from rankrl.data import dedup
from rankrl.data.items import Item
from rankrl.data.reading import commit, read
from rankrl.data.sources import Question, accepted, find_source
from rankrl.data.spool import Columns, Shingles, Spool, drawn_order
from rankrl.recipe.check import require
from rankrl.recipe.mixture import Mixture, Origin
from rankrl.recipe.scale import Scale

Drawn = dict[str, list[tuple[Item, str]]]
"""Source -> (item, level)."""
Fits = Callable[[str], bool]
"""Whether a prompt is short enough."""


@dataclass
class Ledger:
    """What became of a source's rows."""

    revision: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    content: int = 0
    """Sum of the rows' hashes: the same rows in any order have the same."""


def build(scale: Scale, to: Path, fits_of: Callable[[Scale], Fits]) -> str:
    """Writes train.parquet, eval.parquet, README.md and card.json into the new directory `to`; returns what README.md says.

    Raises ValueError, one line, if the scale has no mixture, `to` exists, a source cannot be read, or too few items are left.
    OSError for a full disk.
    """
    from rankrl.data.card import write

    mixture = scale.data.mixture
    if mixture is None:
        raise ValueError(f"data.mixture: scale {scale.name} has none, allowed: a section with train and evaluation")
    require(not to.exists(), "--to", str(to), "a directory that does not exist yet", "move the old one away")
    fits = fits_of(scale)  # before anything is read: a model that is not there is noticed at once
    to.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        write(scale, *draw(mixture, scale.data.train_items, scratch, fits), scratch / "data")
        (scratch / "data").rename(to)
        return (to / "README.md").read_text()
    except sqlite3.OperationalError as error:  # what SQLite makes of a full disk
        raise OSError(f"{scratch}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def draw(mixture: Mixture, train_items: int, scratch: Path, fits: Fits) -> tuple[Drawn, Drawn, dict[str, Ledger]]:
    """(training items, evaluation items, ledger), by source."""
    ledgers = {name: Ledger(_revision(name, mixture)) for name in mixture.sources}
    spool = Spool(scratch)
    try:
        rows = spool.fill(_questions(mixture, ledgers))
        pool = Pool(mixture, ledgers, spool, rows, fits)
        sets = Shingles(spool.shingle_path, rows.shingles)
        pool.drop_copies(sets)
        held_out = [name for name in mixture.evaluation if name not in mixture.train]
        often = dedup.frequencies(sets, pool.kept())
        pool.drop_near(sets, often)
        pool.drop_leaks(sets, often, pool.kept(held_out))
        evaluation = {name: pool.take(name, items) for name, items in mixture.evaluation.items()}
        shared = [row for name in evaluation if name in mixture.train for row in evaluation[name]]
        pool.out[shared] = True
        pool.drop_leaks(sets, often, np.array(shared, dtype=np.int64))
        train = pool.take_by_weight(train_items)
        return pool.items(train), pool.items(evaluation), ledgers
    finally:
        spool.close()


def _revision(name: str, mixture: Mixture) -> str:
    origin = mixture.origin.get(name, Origin())
    return "local" if origin.path else commit(name, find_source(name), origin)


def _questions(mixture: Mixture, ledgers: dict[str, Ledger]) -> Iterator[tuple[int, str, list[Question]]]:
    """Batches of questions, source by source; counts what is dropped."""
    for index, (name, ledger) in enumerate(ledgers.items()):
        source, origin = find_source(name), mixture.origin.get(name, Origin())
        for batch in read(name, source, origin, None if ledger.revision == "local" else ledger.revision):
            found = [accepted(row, source) for row in batch]
            ledger.read += len(batch)
            ledger.dropped.update(reason for reason in found if isinstance(reason, str))
            if questions := [question for question in found if isinstance(question, Question)]:
                yield index, name, questions
        print(
            f"{name}: {ledger.read:,} rows, {ledger.read - ledger.dropped.total():,} with a verifiable answer",
            flush=True,
        )


class Pool:
    """The rows that may still be drawn. `out` marks the others."""

    def __init__(self, mixture: Mixture, ledgers: dict[str, Ledger], spool: Spool, rows: Columns, fits: Fits):
        self.mixture, self.ledgers, self.spool, self.rows, self.fits = mixture, ledgers, spool, rows, fits
        self.names = mixture.sources
        self.out = np.zeros(len(rows.source), dtype=bool)
        self.order = drawn_order(rows.content, mixture.seed)
        self.precedence = np.empty(len(self.out), dtype=np.int64)
        self.precedence[np.lexsort((self.order, rows.source))] = np.arange(len(self.out))
        for index, ledger in enumerate(ledgers.values()):
            ledger.content = int(np.sum(rows.content[rows.source == index], dtype=np.uint64))

    def kept(self, names: list[str] | None = None) -> np.ndarray:
        """Row numbers that are left, of all sources or of some."""
        wanted = np.isin(self.rows.source, [self.names.index(name) for name in names or []])
        return np.flatnonzero(~self.out & (wanted if names is not None else True))

    def drop(self, rows: np.ndarray, reason: str) -> None:
        self.out[rows] = True
        for index, number in enumerate(np.bincount(self.rows.source[rows], minlength=len(self.names)).tolist()):
            if number:
                self.ledgers[self.names[index]].dropped[reason] += number

    def drop_copies(self, sets: Shingles) -> None:
        stands_for, contradicted = dedup.exact(self.rows, self.order)
        source, other = self.rows.source, stands_for != np.arange(len(stands_for))
        held_out = np.array([name not in self.mixture.train for name in self.names])
        of_evaluation = other & held_out[source[stands_for]] & ~held_out[source]
        self.drop(np.flatnonzero(of_evaluation), "copy of an evaluation item")
        self.drop(np.flatnonzero(other & ~of_evaluation), "duplicate")
        self.drop(np.flatnonzero(contradicted), "two answers")

    def drop_near(self, sets: Shingles, often: np.ndarray) -> None:
        gone = dedup.near(
            self.rows, sets, self.kept(list(self.mixture.train)), self.precedence, often, self.mixture.near
        )
        self.drop(gone, "near-copy")

    def drop_leaks(self, sets: Shingles, often: np.ndarray, held_out: np.ndarray) -> None:
        """Of training sources, what copies `held_out`."""
        if len(held_out):
            kept = self.kept(list(self.mixture.train))
            gone = dedup.leaks(sets, kept, held_out, often, self.mixture.near, self.mixture.leak)
            self.drop(gone, "near-copy of an evaluation item")

    def fitting(self, name: str) -> Iterator[int]:
        """Rows of a source whose prompt is short enough, in the order in which they are drawn."""
        rows = self.kept([name])
        for row, question in self.spool.questions(rows[np.argsort(self.order[rows])]):
            if self.fits(question.prompt):
                yield row
            else:
                self.ledgers[name].dropped["prompt too long"] += 1
                self.out[row] = True

    def take(self, name: str, items: int) -> list[int]:
        found = list(islice(self.fitting(name), items))
        require(
            len(found) == items, f"data.mixture.evaluation.{name}", items, f"at most the {len(found)} that are left"
        )
        return found

    def take_by_weight(self, items: int) -> dict[str, list[int]]:
        """`items` rows, split by the weights; what a source lacks is split among the others while they have more."""
        taken: dict[str, list[int]] = {name: [] for name in self.mixture.train}
        open_ = {name: self.fitting(name) for name in taken}
        while missing := items - sum(map(len, taken.values())):
            if not open_:
                raise ValueError(f"data.train_items: got {items}, allowed: at most the {items - missing} that are left")
            for name, share in split(missing, {name: self.mixture.train[name] for name in open_}).items():
                got = list(islice(open_[name], share))
                taken[name] += got
                if len(got) < share:
                    del open_[name]
        return taken

    def items(self, rows: dict[str, list[int]]) -> Drawn:
        """The items of row numbers, sorted by name."""
        drawn: Drawn = {}
        for name, numbers in rows.items():
            found = self.spool.questions(np.array(numbers, dtype=np.int64))
            named = [
                (Item(f"{name}-{int(self.rows.content[row]):016x}", name, q.prompt, q.answer), q.level)
                for row, q in found
            ]
            drawn[name] = sorted(named, key=lambda pair: pair[0].item_id)
        return drawn


def split(total: int, weights: dict[str, float]) -> dict[str, int]:
    """`total` in whole parts by weight (largest remainders; of equal ones the first)."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    for name in sorted(parts, key=lambda name: parts[name] - exact[name])[: total - sum(parts.values())]:
        parts[name] += 1
    return parts
