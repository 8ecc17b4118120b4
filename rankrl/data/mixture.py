"""Builds a scale's training and evaluation items from its sources: `rankrl data SCALE --to DIR`.

What is drawn depends on the rows and the scale alone, not on the order of rows or files, nor on the
machine.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rankrl.data import dedup
from rankrl.data.card import write
from rankrl.data.drawing import Drawn, Fits, Ledger, Pool
from rankrl.data.reading import commit, read
from rankrl.data.sources import Question, accepted, find_source
from rankrl.data.spool import Shingles, Spool
from rankrl.recipe.mixture_section import Mixture, Origin
from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale


def build(scale: Scale, to: Path, fits_of: Callable[[Scale], Fits]) -> str:
    """Writes train.parquet, eval.parquet, README.md and card.json into the new directory `to`.

    Returns the text of README.md. `fits_of` returns the length check for prompts. Raises
    ValueError, one line, if the scale has no mixture, `to` exists, a source cannot be read, or too
    few items are left; OSError for a full disk.
    """
    mixture = scale.data.mixture
    if mixture is None:
        raise ValueError(f"data.mixture: scale {scale.name} has none, allowed: a section with train and evaluation")
    whole, wanted = sum(mixture.evaluation.values()), scale.data.eval_items
    require(whole == wanted, "data.eval_items", wanted, f"{whole}, the sum of data.mixture.evaluation")
    require(not to.exists(), "--to", str(to), "a directory that does not exist yet", "move the old one away")
    fits = fits_of(scale)  # before anything is read, so that a missing model is noticed at once
    to.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        write(scale, *draw(mixture, scale.data.train_items, scratch, fits), scratch / "data")
        (scratch / "data").rename(to)
        return (to / "README.md").read_text()
    except sqlite3.OperationalError as error:  # SQLite's error for a full disk
        raise OSError(f"{scratch}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def draw(mixture: Mixture, train_items: int, scratch: Path, fits: Fits) -> tuple[Drawn, Drawn, dict[str, Ledger]]:
    """(training items, evaluation items, ledgers), each by source. Rows are kept in `scratch`."""
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
    """Batches (source index, source name, questions), source by source.

    Counts in `ledgers` the rows that are read and those that are dropped.
    """
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
