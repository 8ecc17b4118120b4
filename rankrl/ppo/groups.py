"""Groups of workers, called by the controllers of several runs, each from its own thread."""

from __future__ import annotations

import threading
from typing import Any

import ray
from openrlhf.trainer.ray.launcher import RayActorGroup

from rankrl.ppo.placement import Seat
from rankrl.ppo.workers import Call
from rankrl.recipe.scale import Placement


class WorkerGroup(RayActorGroup):
    """Upstream's worker group, made safe for callers in several threads.

    All workers get the calls in the same order; otherwise their collectives would deadlock.
    """

    def __init__(self, place: Placement, seats: list[Seat], worker: Any):
        self._order, self.seats = threading.Lock(), seats
        super().__init__(place.nodes, len(seats) // place.nodes, worker)

    def _initiate_actors(self, pg: None, num_gpus_per_actor: float) -> None:
        """Starts the workers on our seats.

        Upstream's own placement groups may put workers of different nodes on one node.
        """
        address = (None, None)
        self._actor_handlers: list[Any] = []
        for rank, seat in enumerate(self.seats):
            worker = self.ray_actor_type.options(**seat.options()).remote(len(self.seats), rank, *address)
            self._actor_handlers.append(worker)
            if rank == 0 and len(self.seats) > 1:  # it answers once it has imported everything
                address = ray.get(worker.get_master_addr_port.remote())

    def stop(self) -> None:
        for worker in self.workers:
            ray.kill(worker)

    @property
    def workers(self) -> list[Any]:
        return self._actor_handlers

    def async_run_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        with self._order:
            return super().async_run_method(method_name, *args, **kwargs)

    def each(self, method_name: str, arguments: list[tuple]) -> list[Any]:
        """Calls a method on every worker, on worker i with `arguments[i]`.

        Returns a Ray reference per worker.
        """
        with self._order:
            return [getattr(w, method_name).remote(*args) for w, args in zip(self.workers, arguments, strict=True)]


def value_names(run_id: str, critics: int = 2) -> list[str]:
    """The names of a run's value adapters, of which there are at most two.

    They differ from the policy adapter's, because all may be on the same base.
    """
    return [f"{run_id}-value", f"{run_id}-value-2"][:critics]


class RunView:
    """One run's view of a worker group: the two methods that upstream calls on groups.

    Every call waits in the workers' queues behind the calls of all other runs. So calls to
    `DEFERRED` methods, which have no result, are sent with the next call, and arguments are sent
    with the call instead of through the object store (Ray decides by size). `renamed` maps a method
    that upstream calls to the worker's method.
    """

    DEFERRED = ("append", "set_clip", "set_rate", "forget_rollout")

    def __init__(self, group: WorkerGroup | ValueRole, name: str, renamed: dict[str, str] | None = None):
        self.group, self.name, self.renamed = group, name, renamed or {}
        self.deferred: list[list[Call]] = [[] for _ in group.workers]

    def async_run_method(self, method_name: str, **kwargs: Any) -> list[Any]:
        """Calls a method on every worker, with the same arguments.

        Returns a Ray reference per worker, or none if the call is deferred.
        """
        return self._call("call", method_name, [[kwargs]] * len(self.group.workers))

    def async_run_method_batch(self, method_name: str, **columns: Any) -> list[Any]:
        """Calls a method once per row of `columns`; the workers share the rows evenly.

        Returns a Ray reference per worker to its list of results, or none if the calls are
        deferred.
        """
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        share = -(-len(rows) // len(self.group.workers))
        return self._call(
            "call_batch", method_name, [rows[i * share : (i + 1) * share] for i in range(len(self.group.workers))]
        )

    def _call(self, how: str, method_name: str, rows: list[list[dict[str, Any]]]) -> list[Any]:
        method = self.renamed.get(method_name, method_name)
        for calls, worker_rows in zip(self.deferred, rows, strict=True):
            calls.append((method, worker_rows))
        if method in self.DEFERRED:
            return []
        ready, self.deferred = self.deferred, [[] for _ in rows]
        return self.group.each(how, [(self.name, calls) for calls in ready])


class PolicyView(RunView):
    """A run's view of the policy workers that asks for the adapter together with its update."""

    def __init__(self, group: WorkerGroup, name: str, dtype: str):
        super().__init__(group, name)
        self.dtype = dtype
        self.updated: Any = None

    def async_run_method(self, method_name: str, **kwargs: Any) -> list[Any]:
        refs = super().async_run_method(method_name, **kwargs)
        if method_name == "fit":
            self.updated = self._payload()
        return refs

    def payload(self) -> Any:
        """Ray reference to the adapter (`Payload`) after the last update."""
        payload, self.updated = self.updated or self._payload(), None
        return payload

    def _payload(self) -> Any:
        return super().async_run_method("payload", dtype=self.dtype)[0]


class ValueRole:
    """The value workers inside a group of trainer workers, with the methods of a group."""

    def __init__(self, group: WorkerGroup):
        self.group, self.workers = group, group.workers

    def async_run_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return self.group.async_run_method("as_value", method_name, *args, **kwargs)

    def each(self, method_name: str, arguments: list[tuple]) -> list[Any]:
        return self.group.each("as_value", [(method_name, *args) for args in arguments])
