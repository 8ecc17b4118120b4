"""Atomic writes: a file is either the old one or the whole new one, however the writer ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

LONGEST_NAME = 100
"""Characters of a temporary's name that come from the file's: file systems allow 255 in all."""
FORGOTTEN_S = 86_400
"""Age after which a temporary file is taken to be left over from a writer that was killed."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for text, bytes or a library that writes to a path.

    At the end of the block the temporary file is flushed to disk and replaces `path`. On an error,
    such as a full disk, it is removed and `path` stays as it was. Each writer has a temporary file
    of its own: if two write at once, on one machine or two, the last to end wins.
    """
    path = Path(os.path.realpath(path))  # through a link: what it names is replaced, not the link
    part = path.with_name(f".{path.name[:LONGEST_NAME]}.{uuid4().hex}.part")
    _remove_forgotten(path)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_forgotten(path: Path) -> None:
    """Removes temporary files of `path` whose writers were killed. They can be as large as it."""
    for part in path.parent.glob(f".{escape(path.name[:LONGEST_NAME])}.*.part"):
        with suppress(OSError):  # its writer, or another one, has already moved or removed it
            if time.time() - part.stat().st_mtime > FORGOTTEN_S:
                part.unlink()
