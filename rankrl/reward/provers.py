"""Worker processes for algebra.

Each verdict has a deadline. A worker that misses it, dies or runs out of memory is replaced.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY_BYTES = 1 << 30
START_S = 120.0
"""Most seconds that a worker may take to start: it imports sympy, maybe beside busy training."""
BATCH = 16
"""Pairs that a worker is sent at once."""
Pair = tuple[str, str]
"""(given, gold)."""


class Worker:
    """One prover process, owned by one thread.

    It dies with that thread or with the whole parent process (PR_SET_PDEATHSIG).
    """

    def __init__(self, deadline_s: float):
        self.deadline_s, self.unread = deadline_s, b""
        command = [sys.executable, "-P", "-m", "rankrl.reward.prover", str(int(deadline_s) + 1), str(MEMORY_BYTES)]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        if self._line(START_S) != "ready":
            self.kill()
            raise RuntimeError("grader: its worker does not start; see `python -m rankrl.reward.prover 5 1073741824`")

    def verdicts(self, pairs: list[Pair]) -> Iterator[str | None]:
        """A verdict for each pair, as it arrives; a last None if the worker is late or gone.

        It is late after `deadline_s` seconds without a verdict.
        """
        try:
            self._send(json.dumps(pairs, ensure_ascii=False).encode(errors="replace") + b"\n")
        except OSError:
            yield None
            return
        for _ in pairs:
            verdict = self._line(self.deadline_s)
            yield verdict
            if verdict is None:
                return

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def _send(self, message: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(message)
        self.process.stdin.flush()

    def _line(self, wait_s: float) -> str | None:
        """The worker's next line, or None if none arrives within `wait_s` seconds."""
        assert self.process.stdout
        pipe, end_s = self.process.stdout.fileno(), time.monotonic() + wait_s
        while b"\n" not in self.unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))
            part = os.read(pipe, 1 << 16) if ready else b""
            if not part:
                return None
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode()


class Pool:
    """`workers` processes, started when first needed. Calls may come from any number of threads."""

    def __init__(self, workers: int, deadline_s: float):
        self.deadline_s, self.slowest_s, self.replaced = deadline_s, 0.0, 0
        self.workers: list[Worker] = []
        self._threads = ThreadPoolExecutor(workers, "grader")
        self._own = threading.local()

    def prove(self, pairs: list[Pair], call_s: float) -> list[str]:
        """A verdict for each pair, in order: correct, wrong, unparsable or timeout.

        Batches that are not started within `call_s` seconds get timeout.
        """
        end_s = time.monotonic() + call_s
        batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
        done = self._threads.map(lambda batch: list(self._batch(batch, end_s)), batches)
        return [verdict for verdicts in done for verdict in verdicts]

    def close(self) -> None:
        """Ends the processes. A later call starts new ones."""
        for worker in self.workers:
            worker.process.kill()

    def _batch(self, pairs: list[Pair], end_s: float) -> Iterator[str]:
        while pairs:
            if time.monotonic() > end_s:
                yield from ["timeout"] * len(pairs)
                return
            worker, asked_s = self._worker(), time.monotonic()
            for verdict in worker.verdicts(pairs):
                now_s = time.monotonic()
                self.slowest_s, asked_s = max(self.slowest_s, now_s - asked_s), now_s
                pairs = pairs[1:]
                if verdict is None:
                    self._replace(worker)
                yield verdict or "timeout"

    def _worker(self) -> Worker:
        """The worker of this thread. One that died while idle is replaced and costs no verdict."""
        worker = getattr(self._own, "worker", None)
        if worker and worker.process.poll() is not None:
            self._replace(worker)
            worker = None
        if worker is None:
            worker = self._own.worker = Worker(self.deadline_s)
            self.workers.append(worker)
        return worker

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        self.workers.remove(worker)
        self._own.worker = None
        self.replaced += 1
