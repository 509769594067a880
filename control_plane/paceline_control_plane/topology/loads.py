"""How busy runners are, as agents that joined this replica tell it: kept in memory, never in the store.

Load changes all the time and decides nothing here: the leader never sees it. It is published at most once in a while, so that watchers
of the cluster hear of load that often and not of each report. Another replica knows nothing of it.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from paceline_services.domain.instances import Instance, Shard
from paceline_services.domain.nodes import ClusterState
from paceline_services.domain.runners import RunnerLoad, RunnerReport
from paceline_services.ids import Epoch, InstanceId, NodeId

PUBLISH_INTERVAL_S = 1.0
"""Least time in seconds between two changes that watchers hear of."""

LoadKey = tuple[NodeId, InstanceId, Epoch, int, int]
"""Node, instance, epoch, stage, rank."""
Loads = Mapping[LoadKey, RunnerLoad]


class LoadBoard:
    """The load of every runner of the nodes that joined this replica."""

    def __init__(self, interval_s: float = PUBLISH_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._by_node: dict[NodeId, dict[LoadKey, RunnerLoad]] = {}
        self._published: Loads = MappingProxyType({})
        self._publishing: asyncio.TimerHandle | None = None
        self._next_time = 0.0
        self._next = asyncio.Event()

    @property
    def current(self) -> Loads:
        """What was last published; never changed afterwards."""
        return self._published

    def take(self, node_id: NodeId, runners: Iterable[RunnerReport]) -> None:
        """All runners of a node, as it reports them now."""
        loads = {_key(node_id, runner): _sane(runner.load) for runner in runners if runner.load}
        if loads != self._by_node.get(node_id, {}):
            self._by_node[node_id] = loads
            self._publish_soon()

    def forget(self, node_id: NodeId) -> None:
        """The node's stream ended: what it said is too old to be shown."""
        if self._by_node.pop(node_id, None):
            self._publish_soon()

    async def changed(self, since: Loads) -> Loads:
        """What is published, as soon as it is something else than since."""
        while self._published is since:
            await self._next.wait()
        return self._published

    def _publish_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._publishing is None:
            self._publishing = loop.call_at(max(loop.time(), self._next_time), self._publish)

    def _publish(self) -> None:
        self._publishing = None
        self._next_time = asyncio.get_running_loop().time() + self._interval_s
        self._published = MappingProxyType(
            {key: load for loads in self._by_node.values() for key, load in loads.items()}
        )
        self._next.set()
        self._next = asyncio.Event()


def with_loads(state: ClusterState, loads: Loads) -> ClusterState:
    """The state with what is known of its runners' load, on nodes and in instances. Pure."""
    if not loads:
        return state
    nodes = tuple(
        replace(node, runners=tuple(_with_load(node.inventory.node_id, runner, loads) for runner in node.runners))
        for node in state.nodes
    )
    return replace(state, nodes=nodes, instances=tuple(_with_shard_loads(one, loads) for one in state.instances))


def _with_shard_loads(instance: Instance, loads: Loads) -> Instance:
    shards = tuple(
        Shard(shard.placement, _with_load(shard.placement.node_id, shard.runner, loads) if shard.runner else None)
        for shard in instance.shards
    )
    return replace(instance, shards=shards)


def _with_load(node_id: NodeId, runner: RunnerReport, loads: Loads) -> RunnerReport:
    load = loads.get(_key(node_id, runner))
    return replace(runner, load=load) if load else runner


def _key(node_id: NodeId, runner: RunnerReport) -> LoadKey:
    return node_id, runner.instance_id, runner.epoch, runner.stage, runner.rank


def _sane(load: RunnerLoad) -> RunnerLoad:
    """A ratio from 0 to 1, whatever came over the wire: clients write it as JSON."""
    ratio = load.idle_ratio if math.isfinite(load.idle_ratio) else 0.0
    return replace(load, idle_ratio=min(1.0, max(0.0, ratio)))
