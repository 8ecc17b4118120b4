"""What a report costs: seconds and memory of its parts, on synthetic sweeps.

    python bench/report.py [SEEDS ...]

For each number of seeds it writes 36 cells of that many seeds x 500 steps and times the parts; an
existing directory is measured as it is. Default: 6 and 278 seeds, that is 216 and 10,008 runs (5 GB
if each run had metrics of its own; here most link to those of 20 runs).
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import browser
from records import synthetic216

from rankrl.report.build import build
from rankrl.report.read import curve, read_sweep
from rankrl.report.summary import sweep_summary


def timed(name: str, work):
    """Calls `work` and returns its result.

    Prints CPU seconds, wall seconds and the peak of resident memory so far.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    print(f"  {name:<12} {cpu_s:7.1f} s CPU {wall_s:7.1f} s wall {peak_mib:7.0f} MiB peak", flush=True)
    return result


def measure(root: Path) -> None:
    sweep = timed("read", lambda: read_sweep(root))
    print(f"{len(sweep.results)} runs")
    timed("statistics", lambda: sweep_summary(sweep))
    timed("curves", lambda: [len(curve(root / result["run_id"])) for result in sweep.results])
    timed("whole report", lambda: build(root))
    print(f"  page opened in {opening_s(root / 'report' / 'index.html'):.2f} s (Chromium, median of 5)\n", flush=True)


def opening_s(page: Path) -> float:
    """Median seconds from the start of the navigation to the end of the load event.

    It is over 5 openings; a first one is left out.
    """
    with tempfile.TemporaryDirectory() as directory, browser(Path(directory)) as window:
        seen_ms = []
        for _ in range(6):
            window.open(page)
            seen_ms.append(window.run("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
        return statistics.median(seen_ms[1:]) / 1000


if __name__ == "__main__":
    for given in sys.argv[1:] or ["6", "278"]:
        if Path(given).is_dir():
            measure(Path(given))
            continue
        with tempfile.TemporaryDirectory() as directory:
            measure(synthetic216(Path(directory), seeds=int(given), items=20, own_metrics=20))
