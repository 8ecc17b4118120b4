"""The text of error.txt: what is known of how a run failed or diverged, of bounded size."""

from __future__ import annotations

import re
import time
import traceback
from pathlib import Path

from ray._private import worker as ray_worker

from rankrl.report.model_text import shortened
from rankrl.report.result import Result
from rankrl.sweep.owner import me
from rankrl.sweep.progress import SAID

TRACEBACK_CHARS = 40_000
LOG_CHARS = 10_000
"""Characters of the end of each log."""
LOGS = 4
"""Most logs of worker processes that are quoted."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PID = re.compile(r"\bpid[=:] ?(\d+)")


def error_text(failure: Result, error: BaseException) -> str:
    """What happened, where, the traceback, and the ends of the logs.

    The traceback of a worker's error is that in the worker, with its process and node; then those
    above it. Of a worker that was killed, Ray says what it knows: signal, node, exit.
    """
    trace = COLOUR.sub("", "".join(traceback.format_exception(error)))
    return "\n".join(
        [
            f"{failure.run_id} {failure.status} after step {failure.steps}: {failure.error}",
            f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, {me()}",
            *section("traceback", shortened(trace, TRACEBACK_CHARS)),
            *section("last lines of the sweep", "\n".join(SAID)[-LOG_CHARS:]),
            *(line for file in worker_logs(trace, ray_logs()) for line in section(f"end of {file.name}", tail(file))),
            "",
        ]
    )


def section(title: str, text: str) -> list[str]:
    return ["", f"== {title} ==", text.strip("\n") or "(nothing)"]


def ray_logs() -> Path | None:
    """The directory of the logs of Ray's processes on this node; None if Ray is not running."""
    node = ray_worker._global_node
    return Path(node.get_logs_dir_path()) if node else None


def worker_logs(trace: str, directory: Path | None) -> list[Path]:
    """The logs of the processes that a traceback names, those that are on this node and not empty.

    An engine that has crashed leaves its own traceback there.
    """
    pids = dict.fromkeys(PID.findall(trace))  # without repetition, in order
    files = [file for pid in pids if directory for file in sorted(directory.glob(f"worker-*-{pid}.*"))]
    return [file for file in files if file.stat().st_size][:LOGS]


def tail(file: Path) -> str:
    """The last `LOG_CHARS` bytes of a log as text, from the start of a line."""
    skipped = max(0, file.stat().st_size - LOG_CHARS)
    with file.open("rb") as log:
        log.seek(skipped)
        text = log.read(LOG_CHARS).decode(errors="replace")
    return COLOUR.sub("", (skipped and text.partition("\n")[2]) or text)
