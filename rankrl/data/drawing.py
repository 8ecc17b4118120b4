"""The pool of rows that a mixture is drawn from, and how it is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from rankrl.data import dedup
from rankrl.data.items import Item
from rankrl.data.spool import Columns, Shingles, Spool, drawn_order
from rankrl.recipe.mixture_section import Mixture
from rankrl.recipe.require import require

Drawn = dict[str, list[tuple[Item, str]]]
"""Source -> its drawn items as (item, level)."""
Fits = Callable[[str], bool]
"""Whether a prompt is short enough."""


@dataclass
class Ledger:
    """The account of a source's rows: how many were read, and how many were dropped for what."""

    revision: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    content: int = 0
    """Sum of the hashes of all rows (mod 2**64). The order of rows does not change it."""


class Pool:
    """The rows that may still be drawn; `out` marks the others."""

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
        """The numbers of the rows that are left, of the sources `names` or of all."""
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
        """Drops the rows of training sources that copy one of the rows `held_out`."""
        if len(held_out):
            kept = self.kept(list(self.mixture.train))
            gone = dedup.leaks(sets, kept, held_out, often, self.mixture.near, self.mixture.leak)
            self.drop(gone, "near-copy of an evaluation item")

    def fitting(self, name: str) -> Iterator[int]:
        """The rows of a source in drawing order. Drops those whose prompt is too long."""
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
        """Source -> its drawn rows: `items` in all, split by the weights of the training sources.

        What a source lacks is split among the others. Raises ValueError if too few rows are left.
        """
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
        """The items of the given rows (source -> row numbers), sorted by item_id."""
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
    """Splits `total` into whole parts by weight: largest remainders, the first of equal ones."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    for name in sorted(parts, key=lambda name: parts[name] - exact[name])[: total - sum(parts.values())]:
        parts[name] += 1
    return parts
