"""Files that are either the old one or the whole new one, whatever ends the writer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

FORGOTTEN_S = 86_400
"""A temporary that nobody has written to for so long is left from a writer that was killed."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for text, bytes or a library that wants a path.

    When the block ends it is on disk and takes the place of `path`. On an error, a full disk say,
    nothing is left of it and `path` stays as it was. Each writer has a temporary of its own: of two
    at once, on one machine or two, the last to end has the file.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    _remove_forgotten(path)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_forgotten(path: Path) -> None:
    """Removes temporaries of `path` whose writers were killed: of a checkpoint they are large."""
    for part in path.parent.glob(f".{escape(path.name)}.*.part"):
        with suppress(OSError):  # its writer, or another, was quicker
            if time.time() - part.stat().st_mtime > FORGOTTEN_S:
                part.unlink()
