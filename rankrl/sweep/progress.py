"""What a sweep prints: one line per event."""

from __future__ import annotations

import time

from rankrl.report.result import Result


def say(text: str) -> None:
    """Prints one line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def progress(result: Result, done: int, total: int, eta_s: float) -> str:
    """The line for a run that has ended; `eta_s` is the estimated time left in seconds."""
    gain = (
        "" if result.gain is None else f"gain {result.gain:+.4f} ({result.base_score:.4f} -> {result.final_score:.4f})"
    )
    text = result.error or gain
    left = f", {eta_s / 60:.0f} min left" if done < total else ""
    return f"[{done}/{total}] {result.run_id} {result.status}: {text}, {result.wall_s:.0f} s{left}"
