"""Where worker and engine processes run: placement groups on the Ray cluster.

The largest groups are reserved first, so that small ones fill the gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rankrl.ppo.cluster import check_resources
from rankrl.recipe.scale import Placement

WAIT_S, POLL_S = 60, 2
"""Seconds to wait for a placement group, and between two checks. A cluster with enough free GPUs
answers within this time, even if actors of stopped services are still leaving."""


@dataclass(frozen=True)
class Seat:
    """A GPU, or a share of one, that is reserved for one process."""

    group: PlacementGroup
    bundle: int
    """Index of the bundle in its placement group."""
    share: float = 1.0

    def options(self, gpus: float | None = None) -> dict[str, Any]:
        """Ray's options for the actor on this seat; `gpus` replaces the seat's share."""
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group,
            placement_group_bundle_index=self.bundle,
            placement_group_capture_child_tasks=True,
        )
        share = self.share if gpus is None else gpus
        return {"num_cpus": self.share, "num_gpus": share, "scheduling_strategy": strategy}

    @property
    def node(self) -> str:
        """Host name of the seat's node."""
        return _node_names()[placement_group_table(self.group)["bundles_to_node_id"][self.bundle]]


@dataclass(frozen=True)
class Seats:
    """All seats: of workers by rank, and of each engine one per tensor-parallel worker."""

    policy: list[Seat]
    value: list[Seat]
    engines: list[list[Seat]]
    groups: list[PlacementGroup]

    def leave(self) -> None:
        """Gives all seats back to the cluster."""
        for group in self.groups:
            remove_placement_group(group)

    def __str__(self) -> str:
        engines = [seats[0] for seats in self.engines]
        parts = {"policy": self.policy, "value": self.value, "engines": engines}
        return "; ".join(f"{name} on {' '.join(seat.node for seat in seats)}" for name, seats in parts.items() if seats)


def take_seats(place: Placement) -> Seats:
    """Reserves the seats of `place`.

    Raises ValueError if the cluster has no room for them; nothing stays reserved then.
    """
    groups: list[PlacementGroup] = []
    try:
        return (_colocated if place.colocated else _apart)(place, groups)
    except BaseException:
        for group in groups:
            remove_placement_group(group)
        raise


def _apart(place: Placement, groups: list[PlacementGroup]) -> Seats:
    """Seats that give every process a GPU of its own.

    Workers are spread over exactly `nodes` nodes; the workers of an engine are on one node.
    """
    workers = {"policy": place.policy_per_node, "value": place.critic_per_node}
    engines = [f"engine {i}" for i in range(place.engines)]
    on_one_node = {**workers, **dict.fromkeys(engines, place.tensor_parallel)}
    seats: dict[str, list[Seat]] = {"policy": [], "value": []}
    for name in sorted(on_one_node, key=lambda name: -on_one_node[name]):
        if name in engines:
            seats[name] = _reserve([1] * place.tensor_parallel, "STRICT_PACK", place, groups)
        elif workers[name]:
            seats[name] = _reserve([workers[name]] * place.nodes, "STRICT_SPREAD", place, groups)
    return Seats(seats["policy"], seats["value"], [seats[name] for name in engines], groups)


def _colocated(place: Placement, groups: list[PlacementGroup]) -> Seats:
    """Seats that put policy worker i, value worker i and a part of an engine on GPU i.

    vLLM needs a bundle for each GPU of an engine.
    """
    reserved = _reserve([1] * place.policy_workers, "PACK", place, groups)
    nodes = placement_group_table(groups[0])["bundles_to_node_id"]
    share = 0.33 if place.critic_per_node else 0.5
    seats = [
        replace(seat, share=share) for seat in sorted(reserved, key=lambda seat: (nodes[seat.bundle], seat.bundle))
    ]
    engines = [seats[i : i + place.tensor_parallel] for i in range(0, len(seats), place.tensor_parallel)]
    return Seats(seats, seats if place.critic_per_node else [], engines, groups)


def _reserve(bundles: list[int], strategy: str, place: Placement, groups: list[PlacementGroup]) -> list[Seat]:
    """Seats in a new placement group, which is added to `groups`; `bundles` are GPUs per bundle.

    Raises ValueError if the cluster does not provide them in time.
    """
    group = placement_group([{"GPU": gpus, "CPU": gpus} for gpus in bundles], strategy=strategy)
    groups.append(group)
    ready = group.ready()
    for _ in range(WAIT_S // POLL_S):
        if ray.wait([ready], timeout=POLL_S)[0]:
            return [Seat(group, bundle) for bundle, gpus in enumerate(bundles) for _ in range(gpus)]
        check_resources(place.gpus)  # raises if a node is lost: waiting for it is useless
    there = ", ".join(f"{n['NodeManagerHostname']} {n['Resources'].get('GPU', 0):g}" for n in ray.nodes() if n["Alive"])
    raise ValueError(
        f"placement: got {len(bundles)} x {bundles[0]} GPUs ({strategy}) of {place.gpus} in all, allowed: what is free on the "
        f"nodes of this cluster ({there})"
    )


def _node_names() -> dict[str, str]:
    """Host name of each living node, by node id."""
    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
