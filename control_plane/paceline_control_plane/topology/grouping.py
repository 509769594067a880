"""Gives the shards of a plan what their groups need beyond nodes: a backend, and RDMA devices where it is JACCL. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from paceline_control_plane.placement.backends import choose_backend
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import ShardPlacement
from paceline_services.domain.runners import GroupBackend


@dataclass(frozen=True, slots=True)
class Grouping:
    """Shards with the RDMA devices of their nodes, what their groups use, and why not RDMA where nodes have it."""

    shards: tuple[ShardPlacement, ...]
    backend: GroupBackend = GroupBackend.RING
    message: str = ""


def group_shards(view: ClusterView, shards: Sequence[ShardPlacement]) -> Grouping:
    """The ranks of each stage as a group; nothing where stages have one rank."""
    if not any(shard.rank for shard in shards):
        return Grouping(tuple(shards))
    stages = [tuple(ranks) for _, ranks in groupby(shards, key=lambda shard: shard.stage)]
    if not all(view.is_up(shard.node_id) for shard in shards):
        return Grouping(tuple(shards))  # nothing is known of a node that is gone
    chosen = choose_backend([[view.nodes[shard.node_id].value.inventory for shard in stage] for stage in stages])
    rows = [row for mesh in chosen.meshes for row in mesh.matrix] or [()] * len(shards)
    equipped = (replace(shard, rdma_devices=row) for shard, row in zip(shards, rows, strict=True))
    return Grouping(tuple(equipped), chosen.backend, chosen.message)
