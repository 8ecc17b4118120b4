"""Ends everything that a local sweep started once the sweep itself is gone.

This also holds after kill -9, which Ray's and vLLM's processes would otherwise survive. A guardian
process holds the reading end of a pipe whose writing end only the sweep has. At end of file it
kills every process that inherited the sweep's mark in its environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import psutil

MARK = "RANKRL_SWEEP_MARK"
PATIENCE_S = 30
"""Seconds for which the guardian goes on killing processes."""


def guard() -> None:
    """Marks this process and everything that it starts from now on, and starts their guardian.

    A second call in the same process does nothing.
    """
    if MARK in os.environ and os.environ[MARK].startswith(f"{os.getpid()}-"):
        return
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    unmarked = {key: value for key, value in os.environ.items() if key != MARK}
    pipe = subprocess.Popen(
        [sys.executable, "-m", "rankrl.ppo.guardian", os.environ[MARK]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=unmarked,
    )
    _open.append(pipe)


_open: list[subprocess.Popen[bytes]] = []  # keeps the writing ends open as long as this process lives


def marked(mark: str, variable: str = MARK) -> list[psutil.Process]:
    """Living processes whose environment variable `variable` is `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Kills processes, of which some may be gone already."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()


def main(mark: str) -> None:
    """Waits until the sweep is gone, then kills the processes that it marked."""
    sys.stdin.buffer.read()  # returns when the sweep is gone
    end = time.time() + PATIENCE_S
    while (left := marked(mark)) and time.time() < end:
        kill(left)
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1])
