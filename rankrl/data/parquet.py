"""The rows of a Parquet file, with numbers as their column's own type has them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("item_id", "source", "prompt", "answer")
SHORT = {"float": np.float32, "halffloat": np.float16}
"""Types whose numbers Python widens to digits that nobody wrote: 0.1 to 0.10000000149011612."""


def parquet_rows(path: Path, key: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file with the columns prompt and answer at least.

    `key` names the setting in errors. Raises ValueError, one line, with file, row and column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {path} is no readable Parquet file ({type(error).__name__})") from error
    missing = sorted({"prompt", "answer"} - set(table.column_names))
    if missing:
        raise ValueError(
            f"{key}: got {path} with {table.column_names}, allowed: with the columns {' and '.join(missing)}"
        )
    names = [name for name in COLUMNS if name in table.column_names]
    columns = [_values(table[name], f"{key}: the column {name} of {path}") for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray, place: str) -> list[Any]:
    try:
        found = column.to_pylist()
    except UnicodeDecodeError as error:
        row = next(number for number, value in enumerate(column, 1) if not _is_text(value))
        raise ValueError(f"{place} is no UTF-8 text in row {row} ({error.reason}), allowed: UTF-8") from error
    return [_exact(value, column.type) for value in found] if _has_short(column.type) else found


def _is_text(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _has_short(kind: pa.DataType) -> bool:
    return str(kind) in SHORT or any(_has_short(kind.field(i).type) for i in range(kind.num_fields))


def _exact(value: Any, kind: pa.DataType) -> Any:
    """A value with short floats as the shortest numbers that read as them, in structs too."""
    if isinstance(value, dict):
        return {name: _exact(part, kind.field(name).type) for name, part in value.items()}
    return value if value is None or str(kind) not in SHORT else Decimal(str(SHORT[str(kind)](value)))
