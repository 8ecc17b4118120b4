"""Locks on run directories: only one process at a time, on any node, writes there.

The kernel's file lock decides; it is released when its holder dies, in whatever way. Some shared
file systems keep locks per node, so the holder also writes its name into the lock file and touches
the file every `BEAT_S` seconds. A name from another node counts as long as the file is touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_S = 10.0
"""Seconds between two touches of a lock file by its holder."""
MISSED_BEATS = 3
"""Number of missed touches after which a holder on another node counts as dead."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, and its Slurm task if it has one."""

    host: str
    pid: int
    job: str | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (Slurm job {self.job})" if self.job else "")


class InUse(ValueError):
    """Another process holds the lock."""


def me() -> Owner:
    return Owner(socket.gethostname(), os.getpid(), slurm_task())


def slurm_task() -> str | None:
    """The id of this Slurm task, such as 12_3 in an array, or 12; None outside Slurm.

    It stays the same after a requeue.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def lock_file(directory: Path, name: str) -> Path:
    return directory / f".{name}.lock"


def read_owner(path: Path) -> Owner | None:
    """The process that last wrote its name into a lock file.

    None if it has released the lock, or if no process did.
    """
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def owned(directory: Path, name: str = "sweep") -> Iterator[None]:
    """Context in which this process holds the lock `name` of a sweep directory.

    The lock of a dead holder is taken over. Raises InUse if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = lock_file(directory, name)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = _beats(path)
        except BlockingIOError:
            taken = True
        if taken:
            raise InUse(
                f"--runs: {name} in {directory} is in use by {read_owner(path) or 'another rankrl process'}; wait for it, or "
                "choose another directory"
            )
        lock.truncate(0)
        lock.write(json.dumps(asdict(me())))
        lock.flush()
        left = threading.Event()
        threading.Thread(target=_beat, args=(path, left), daemon=True).start()
        try:
            yield
        finally:
            left.set()
            lock.truncate(0)


def _beat(path: Path, left: threading.Event) -> None:
    while not left.wait(BEAT_S):
        os.utime(path)


def _beats(path: Path) -> bool:
    """Whether a holder on another node, whose lock may not be visible here, still touches the file.

    Waits until it does or has missed `MISSED_BEATS` touches. The holder may also be an earlier
    attempt of this same task: Slurm requeues a task that it has lost contact with, and that attempt
    may still be running.
    """
    owner = read_owner(path)
    if owner is None or owner.host == socket.gethostname():
        return False
    seen = path.stat().st_mtime
    with tempfile.TemporaryFile(dir=path.parent) as probe:  # by the file server's clock
        silent_s = os.fstat(probe.fileno()).st_mtime - seen
    end = time.time() + MISSED_BEATS * BEAT_S - silent_s
    while time.time() < end:
        if path.stat().st_mtime != seen:
            return True
        time.sleep(BEAT_S / 10)
    return False
