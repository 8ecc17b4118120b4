"""Reads a run's evals.parquet and checks it: against itself, and against the run's result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankrl.report.regular_file import opened
from rankrl.report.visible import visible

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 5_000_000
COLUMNS = ["step", "item_id", "source", "sample", "correct"]


@dataclass(frozen=True)
class Shares:
    """Share of correct samples by item, at step 0 and at a run's last step. Items are sorted."""

    items: np.ndarray
    sources: np.ndarray
    base_I: np.ndarray
    final_I: np.ndarray
    base_samples: int
    """Samples per item at step 0."""
    samples: int
    """Samples per item at the last step."""

    @property
    def items_key(self) -> tuple[Any, ...]:
        """Equal for runs that were evaluated on the same items, with as many samples."""
        return (self.items.tobytes(), self.sources.tobytes(), len(self.items), self.base_samples, self.samples)


def shares(path: Path, result: dict[str, Any]) -> Shares:
    """Shares from the evals.parquet at `path` of the run with this result.

    Raises ValueError, with the reason, if the file is damaged or contradicts the result.
    """
    table = _table(path)
    step, correct = table["step"].to_numpy(), table["correct"].to_numpy().astype(float)
    if not len(step) or not set(np.unique(correct)) <= {0.0, 1.0}:
        raise ValueError("no samples, or correct is neither true nor false")
    first, last = int(step.min()), int(step.max())
    if first < 0 or last > result["steps"]:
        raise ValueError(f"rows of step {first if first < 0 else last}, allowed: 0 to {result['steps']}")
    items, item = _coded(table["item_id"])
    _refuse_doubles(step, item, table["sample"].to_numpy())
    sources, source = _coded(table["source"])
    source_of_I = np.zeros(len(items), dtype=int)
    source_of_I[item] = source
    if (source_of_I[item] != source).any():
        raise ValueError("an item has two sources")
    base_I, base_samples = _at(0, step, item, correct, len(items))
    final_I, samples = _at(result["steps"], step, item, correct, len(items))
    found = Shares(items, sources[source_of_I], base_I, final_I, base_samples, samples)
    _refuse_other_scores(found, result)
    return found


def _table(path: Path) -> pa.Table:
    """The columns COLUMNS, each of its type and without missing values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path) as handle, pq.ParquetFile(handle) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows")
        names = file.schema_arrow.names
        wrong = [name for name in COLUMNS if names.count(name) != 1]
        if wrong:
            raise ValueError(f"lacks {', '.join(wrong)}, or has it twice")
        table = file.read(columns=COLUMNS)
    types = {"step": pa.types.is_integer, "sample": pa.types.is_integer, "correct": pa.types.is_boolean}
    for name in COLUMNS:
        fine = types.get(name, lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind))
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not fine(kind):
            raise ValueError(f"{name} has type {kind}")
        if table[name].null_count:
            raise ValueError(f"{name} is missing in {table[name].null_count} rows")
    return table


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct texts of a column, sorted, and the place of each row's text among them."""
    coded = column.combine_chunks()
    coded = coded if hasattr(coded, "dictionary") else coded.dictionary_encode()
    names = np.array([visible(name) for name in coded.dictionary.to_pylist()], dtype=str)
    distinct, place = np.unique(names, return_inverse=True)
    return distinct, place[coded.indices.to_numpy()]


def _refuse_doubles(step: np.ndarray, item: np.ndarray, sample: np.ndarray) -> None:
    order = np.lexsort((sample, item, step))
    rows = np.stack((step, item, sample), axis=1)[order]
    doubled = int((rows[1:] == rows[:-1]).all(axis=1).sum())
    if doubled:
        raise ValueError(f"{doubled} samples stand in it twice")


def _at(at: int, step: np.ndarray, item: np.ndarray, correct: np.ndarray, items: int) -> tuple[np.ndarray, int]:
    """Shares of correct samples by item at one step, and the samples per item."""
    counts = np.bincount(item[step == at], minlength=items)
    if counts.min() == 0:
        raise ValueError(f"an item lacks samples at step {at}")
    if counts.min() < counts.max():
        raise ValueError(f"from {counts.min()} to {counts.max()} samples per item at step {at}")
    return np.bincount(item[step == at], correct[step == at], items) / counts, int(counts.min())


def _refuse_other_scores(found: Shares, result: dict[str, Any]) -> None:
    """Raises ValueError if a score differs from that of the samples by half a sample or more."""
    for key, shares_I, samples in (
        ("base_score", found.base_I, found.base_samples),
        ("final_score", found.final_I, found.samples),
    ):
        mean = float(shares_I.mean())
        if abs(mean - result[key]) > 0.5 / (len(shares_I) * samples) + 1e-9:
            raise ValueError(f"contradicts result.json: its samples say {key} {mean:.4f}, the result {result[key]:.4f}")
