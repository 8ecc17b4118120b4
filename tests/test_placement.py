"""Placement of processes on a Ray cluster of four nodes with eight pretended GPUs each.

A test has as many nodes as a Slurm task would.
"""

from __future__ import annotations

from collections import Counter

import pytest

from rankrl.recipe.load import load_scale

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def nodes():
    """A Ray cluster of four nodes with 8 pretended GPUs each."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster()
    for _ in range(4):
        cluster.add_node(num_gpus=8, num_cpus=9, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def taken(scale):
    """(seats, GPUs of each process group on each node, number of reserved GPUs) of a scale."""
    import ray
    from ray.util import placement_group_table

    from rankrl.ppo.placement import take_seats

    others = ray.util.placement_group([{"GPU": 8}] * (4 - scale.nodes), "STRICT_SPREAD") if scale.nodes < 4 else None
    if others:
        ray.get(others.ready())
    seats = take_seats(scale.placement)
    groups = [placement_group_table(group) for group in seats.groups]
    tables = {group.id: table["bundles_to_node_id"] for group, table in zip(seats.groups, groups, strict=True)}

    def spread(some):
        return sorted(Counter(tables[seat.group.id][seat.bundle] for seat in some).values())

    used = sum(bundle.get("GPU", 0) for table in groups for bundle in table["bundles"].values())
    shown = {"policy": spread(seats.policy), "value": spread(seats.value), "engines": list(map(spread, seats.engines))}
    everyone = [*seats.policy, *seats.value, *(seat for engine in seats.engines for seat in engine)]
    shown["nodes"] = len({tables[seat.group.id][seat.bundle] for seat in everyone})
    seats.leave()
    if others:
        ray.util.remove_placement_group(others)
    return seats, shown, used


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("qwen3-8b", {}, {"policy": [2], "value": [2], "engines": [[1]] * 4, "nodes": 1}),
        ("qwen3-30b-a3b", {}, {"policy": [4], "value": [], "engines": [[2], [2]], "nodes": 1}),
        ("qwen3-235b-a22b", {}, {"policy": [8, 8], "value": [], "engines": [[8], [8]], "nodes": 4}),
        ("qwen3-8b", {"nodes": 2}, {"policy": [2, 2], "value": [2, 2], "engines": [[1]] * 4, "nodes": 2}),
        (
            "qwen3-8b",
            {"colocated": True, "engine_memory": 0.5, "policy_per_node": 8, "critic_per_node": 8, "engines": 8},
            {"policy": [8], "value": [8], "engines": [[1]] * 8, "nodes": 1},
        ),
        (
            "qwen3-30b-a3b",
            {"colocated": True, "engine_memory": 0.5, "nodes": 2, "policy_per_node": 8, "engines": 4, "tensor_parallel": 4},
            {"policy": [8, 8], "value": [], "engines": [[4]] * 4, "nodes": 2},
        ),
    ],
)  # fmt: skip
def test_seats_of_the_scales(nodes, name, overrides, expected):
    scale = load_scale(name, {"placement": overrides})
    seats, shown, used = taken(scale)
    assert shown == expected
    assert used == scale.placement.gpus
    if scale.placement.colocated:  # all parts of a GPU fit on it
        engines = [seat for engine in seats.engines for seat in engine]
        shares: Counter[int] = Counter()
        for seat in [*seats.policy, *seats.value, *engines]:
            shares[seat.bundle] += seat.share
        assert all(0.9 < share <= 1 for share in shares.values())


def test_a_cluster_without_room_is_an_error(nodes, monkeypatch):
    import ray

    from rankrl.ppo import placement
    from rankrl.ppo.cluster import check_resources

    monkeypatch.setattr(placement, "WAIT_S", 2)
    scale = load_scale("qwen3-8b", {"placement": {"nodes": 5, "policy_per_node": 4, "critic_per_node": 0}})
    with pytest.raises(
        ValueError, match=r"placement: got 5 x 4 GPUs \(STRICT_SPREAD\) of 24 in all, allowed: .* 8, .* 8"
    ):
        placement.take_seats(scale.placement)
    with pytest.raises(ValueError, match="placement: got 33 GPUs, allowed: the 32 GPUs of this cluster"):
        check_resources(33)
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states == {"REMOVED"}  # no placement group is held or waits
