"""Since when things are as they are: the leader's only memory, lost with it and made anew by the next one.

Times are seconds of the caller's monotonic clock. Nothing that must outlive a leader is here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from paceline_control_plane.topology.condition import examine
from paceline_control_plane.topology.view import ClusterView
from paceline_services.ids import Epoch, InstanceId, NodeId

K = TypeVar("K")
EpochKey = tuple[InstanceId, Epoch]


@dataclass(frozen=True, slots=True)
class Memory:
    """settling_since: when this replica became leader, or last saw no node at all: from then on nodes get the time to join again.

    The others: when a fact about a node or an epoch was first seen.
    """

    settling_since: float
    missing_since: Mapping[NodeId, float] = field(default_factory=dict)
    failed_since: Mapping[EpochKey, float] = field(default_factory=dict)
    broken_since: Mapping[EpochKey, float] = field(default_factory=dict)
    ready_since: Mapping[EpochKey, float] = field(default_factory=dict)


def remember(memory: Memory, view: ClusterView, now: float) -> Memory:
    """The memory after seeing a view. What was seen at an epoch is kept while it lasts; a node that is back is not missing."""
    epochs: list[EpochKey] = []
    missing: set[NodeId] = set()
    failed, broken, ready = set[EpochKey](), set[EpochKey](), set[EpochKey]()
    for instance_id, stored in view.assignments.items():
        key = (instance_id, view.epoch(instance_id))
        condition = examine(view, stored.value, key[1])
        epochs.append(key)
        missing.update(condition.missing_nodes)
        if condition.failed:
            failed.add(key)
        if condition.broken:
            broken.add(key)
        if condition.is_ready:
            ready.add(key)
    return Memory(
        memory.settling_since if view.nodes else now,
        _since(memory.missing_since, missing, missing, now),
        _since(memory.failed_since, failed, epochs, now),
        _since(memory.broken_since, broken, epochs, now),
        _since(memory.ready_since, ready, epochs, now),
    )


def _since(before: Mapping[K, float], seen: Iterable[K], kept: Iterable[K], now: float) -> dict[K, float]:
    old = {key: before[key] for key in kept if key in before}
    return {**dict.fromkeys(seen, now), **old}
