"""What a sweep prints: one line per event."""

from __future__ import annotations

import time
from collections import deque

from rankrl.report.result import Result

SAID: deque[str] = deque(maxlen=40)
"""The last lines that this process has printed, for error.txt."""
TOLD: set[str] = set()
"""What `say_once` has told."""
ANSWERS = "answers"
"""The topic of answers of which none is right: the base's evaluation, or the first rollout."""


def say(text: str) -> None:
    """Prints one line with the time of day."""
    SAID.append(f"{time.strftime('%H:%M:%S')} {text}")
    print(SAID[-1], flush=True)


def say_once(topic: str, text: str) -> None:
    """Prints a line the first time that this process has one on `topic`; runs share the topic."""
    if topic not in TOLD:
        TOLD.add(topic)
        say(text)


def progress(result: Result, done: int, total: int, eta_s: float) -> str:
    """The line for a run that has ended; `eta_s` is the estimated time left in seconds."""
    gain = (
        "" if result.gain is None else f"gain {result.gain:+.4f} ({result.base_score:.4f} -> {result.final_score:.4f})"
    )
    text = result.error or gain
    left = f", {eta_s / 60:.0f} min left" if done < total else ""
    return f"[{done}/{total}] {result.run_id} {result.status}: {text}, {result.wall_s:.0f} s{left}"
