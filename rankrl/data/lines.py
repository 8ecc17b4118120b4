"""The rows of a JSONL file, compressed by gzip or not, or of a Parquet file, with their numbers."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rankrl.data.exact import read_json

Row = tuple[int, dict[str, Any]]
COLUMNS = ("item_id", "source", "prompt", "answer")
GZIP = b"\x1f\x8b"


def rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of a file as (number from 1, row), with the keys prompt and answer at least.

    `key` names the setting in errors. Raises ValueError, one line, with file and line.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from enumerate(_parquet_rows(path, key), 1)
        return
    for number, line in _text_lines(path, key):
        try:
            row = read_json(line)
        except ValueError as error:
            raise ValueError(f"{key}: {_no_object(number, path)} ({error})") from error
        if not isinstance(row, dict) or not {"prompt", "answer"} <= set(row):
            found = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
            raise ValueError(f"{key}: {_no_object(number, path)} ({found})")
        yield number, row


def _no_object(number: int, path: Path) -> str:
    return f"line {number} of {path} is no JSON object with prompt and answer"


def _text_lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, as (number from 1, text)."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        fix = "iconv -f LATIN1 -t UTF-8, if that is what it is"
        raise ValueError(f"{key}: line {number} of {path} is no UTF-8 text ({error.reason}); {fix}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{key}: {path} is damaged after line {number} ({error})") from error


def line_no_text(path: Path) -> int | None:
    """The number of the first line of a file that is no UTF-8 text, if there is one."""
    with suppress(OSError, EOFError, zlib.error), _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _opened(path: Path) -> IO[bytes]:
    """A file opened to read bytes, unpacked if it is packed by gzip."""
    with path.open("rb") as start:
        packed = start.read(2) == GZIP
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


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
    return table.select([name for name in COLUMNS if name in table.column_names]).to_pylist()
