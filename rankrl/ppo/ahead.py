"""One step off: the next rollout is sampled while the policy learns from the last one.

Its samples are of the adapter before that update, so they are one step old when they are learnt
from; the recipe's `correction` weighs them by the ratio of the two policies. Upstream's
asynchronous trainer does this with a queue, for one run on its services; here an engine serves many
runs, and a run that is resumed is to be the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from rankrl.ppo.rollout import Sample


class Ahead:
    """The rollout that is sampled ahead, at most one at a time."""

    def __init__(self, rollout: Callable[[int], list[Sample]], steps: int):
        """`rollout` gives the samples of a PPO step, of `steps` in all."""
        self.rollout, self.steps = rollout, steps
        self._waiting: tuple[int, Future[list[Sample]]] | None = None

    def begin(self, step: int) -> None:
        """Starts to sample a step, if there is such a step."""
        if step < self.steps:
            samples: Future[list[Sample]] = Future()
            self._waiting = step, samples
            # a daemon, as those of the runs: a signal to the main thread ends the sweep at once
            threading.Thread(target=self._sample, args=(step, samples), daemon=True).start()

    def _sample(self, step: int, samples: Future[list[Sample]]) -> None:
        try:
            samples.set_result(self.rollout(step))
        except BaseException as error:
            samples.set_exception(error)

    def take(self, step: int) -> list[Sample] | None:
        """The samples of a step; None if it has not been begun."""
        waiting, self._waiting = self._waiting, None
        return waiting[1].result() if waiting and waiting[0] == step else None

    def wait(self) -> None:
        """Returns once the engines are free for another adapter. Raises what sampling raised."""
        if self._waiting:
            self._waiting[1].result()

    def end(self) -> None:
        """Returns once nothing is asked of the engines any more."""
        with suppress(Exception):
            self.wait()
        self._waiting = None
