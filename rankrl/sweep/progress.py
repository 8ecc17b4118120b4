"""What a sweep prints, one line per event, and what it owns."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def progress(result: dict[str, Any], done: int, total: int, eta_s: float) -> str:
    gain = (
        ""
        if result["gain"] is None
        else f"gain {result['gain']:+.4f} ({result['base_score']:.4f} -> {result['final_score']:.4f})"
    )
    text = result.get("error") or gain
    left = f", {eta_s / 60:.0f} min left" if done < total else ""
    return f"[{done}/{total}] {result['run_id']} {result['status']}: {text}, {result['wall_s']:.0f} s{left}"


@contextmanager
def owned(directory: Path, name: str = "sweep") -> Iterator[None]:
    """Holds `name` under a sweep directory for this process; the kernel lets go when the process dies, however it dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"--runs: {name} in {directory} is in use by another rankrl process; wait for it, or choose another directory"
            ) from error
        yield
