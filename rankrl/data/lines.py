"""The rows of a JSONL file, packed by gzip or not, or of a Parquet file, with their numbers."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rankrl.data.exact import read_json
from rankrl.data.parquet import parquet_rows

Row = tuple[int, dict[str, Any]]
GZIP = b"\x1f\x8b"
FOREIGN = {
    b"\xff\xfe\0\0": ("UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    b"\0\0\xfe\xff": ("UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfd7zXZ": ("packed by xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "zstd -d"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"BZh": ("packed by bzip2", "bzip2 -d"),
    b"PAR1": ("Parquet", "name it .parquet"),
}
"""How files begin that are not read: (format, what to do)."""


def rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of a file as (number from 1, row), with the keys prompt and answer at least.

    `key` names the setting in errors. Raises ValueError, one line, with file and line.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from enumerate(parquet_rows(path, key), 1)
        return
    _refuse_foreign(path, key)
    for number, line in _text_lines(path, key):
        try:
            row = read_json(line)
        except ValueError as error:
            raise ValueError(f"{key}: {_no_object(number, path)} ({error})") from error
        if not isinstance(row, dict) or not {"prompt", "answer"} <= set(row):
            found = f"it has {', '.join(map(repr, row))}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
            raise ValueError(f"{key}: {_no_object(number, path)} ({found})")
        yield number, row


def _refuse_foreign(path: Path, key: str) -> None:
    """Raises ValueError, one line, for a file in a format that is known, but not read."""
    try:
        with _opened(path) as file:
            start = file.read(64)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return  # told with its line
    found = next((said for mark, said in FOREIGN.items() if start.startswith(mark)), None)
    if path.suffix.lower() in (".csv", ".tsv"):
        found = ("a table", "pandas: read_csv(..., dtype=str).to_json(..., orient='records', lines=True)")
    if start.decode("utf-8-sig", "ignore").lstrip().startswith("["):
        found = ("one JSON array", "jq -c '.[]'")
    if found:
        raise ValueError(
            f"{key}: {path} is {found[0]}, allowed: JSONL, one JSON object a line, UTF-8, as it is or packed by gzip; "
            f"or Parquet ({found[1]})"
        )


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
