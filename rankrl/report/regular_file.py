"""Reads files of a sweep's directory, which anybody may have written, moved or damaged.

A FIFO would block its reader for ever, a device may have no end: only regular files are opened.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_BYTES = 1 << 28
"""Largest file that is read as a whole. A real metrics.jsonl of 10,000 steps has 6 MB."""


def opened(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading. Raises OSError for anything else."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "a directory", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.open("rb")


def content(path: Path, most_bytes: int = LARGEST_BYTES) -> bytes:
    """The bytes of a regular file. Raises OSError if it cannot be read or has over `most_bytes`."""
    with opened(path) as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
    return found


def missing(path: Path) -> bool:
    """Whether nothing has this name. False where that cannot be known, and for a broken link."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False
