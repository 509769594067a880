"""The leader carries out decisions over the store in memory: instances come, move and go without anyone asking twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from paceline_control_plane.api.wishes import Wishes
from paceline_control_plane.controllers.leader import Leader
from paceline_control_plane.controllers.patience import Patience
from paceline_control_plane.election.election import Election
from paceline_control_plane.keys import Keys
from paceline_control_plane.records import encode_node, encode_report
from paceline_control_plane.store.interface import Delete, Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.observe import observe_cluster
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import Instance, InstanceState, Shard
from paceline_services.domain.nodes import Node, NodeReport, NodeState
from paceline_services.domain.runners import RunnerReport, RunnerState
from paceline_services.ids import Epoch, InstanceId, NodeId
from support.views import MODEL, make_inventory, make_report, make_spec

KEYS = Keys("test")
QUICK = Patience(lease_s=0.2, node_grace_s=0.05, broken_s=0.2)


class Cluster:
    """A replica without sockets; nodes are written by hand."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.feed = ClusterFeed(store, KEYS)
        self.wishes = Wishes(store, KEYS, self.feed)
        self.election = Election(store, KEYS.leader, "test", ttl_s=1)
        self.leader = Leader(store, KEYS, self.feed, QUICK)

    async def put_node(self, name: str, report: NodeReport | None = None) -> None:
        node_id = NodeId(name)
        node = Node(make_inventory(name), NodeState.UP)
        puts = [
            Put(KEYS.node(node_id), encode_node(node)),
            Put(KEYS.report(node_id), encode_report(report or make_report())),
        ]
        await self.feed.reached((await self.store.transact([], puts)).revision)

    async def drop_node(self, name: str) -> None:
        await self.store.transact([], [Delete(KEYS.node(NodeId(name))), Delete(KEYS.report(NodeId(name)))])

    async def run_runners(self, instance: Instance, state: RunnerState = RunnerState.READY) -> None:
        """Every node reports its runner of the instance's epoch."""
        for shard in instance.shards:
            await self.put_node(
                shard.placement.node_id, replace(make_report(), runners=(make_ready(instance, shard, state),))
            )

    async def until(self, is_wanted: Callable[[ClusterView], bool]) -> ClusterView:
        async with asyncio.timeout(5), aclosing(self.feed.views()) as views:
            async for view in views:
                if is_wanted(view):
                    return view
        raise AssertionError

    async def instance(self, is_wanted: Callable[[Instance], bool]) -> Instance:
        def has_it(view: ClusterView) -> bool:
            return any(map(is_wanted, observe_cluster(view).instances))

        return next(filter(is_wanted, observe_cluster(await self.until(has_it)).instances))


def make_ready(instance: Instance, shard: Shard, state: RunnerState) -> RunnerReport:
    place = shard.placement
    return RunnerReport(
        instance.spec.instance_id,
        Epoch(instance.epoch),
        place.stage,
        place.start_layer,
        place.end_layer,
        state,
        address=f"127.0.0.1:{6000 + place.stage}",
    )


@asynccontextmanager
async def run_cluster(store: MemoryStore | None = None) -> AsyncIterator[Cluster]:
    cluster = Cluster(store or MemoryStore())
    tasks = [
        asyncio.create_task(cluster.feed.run()),
        asyncio.create_task(cluster.election.campaign(cluster.leader.lead)),
    ]
    await cluster.feed.changed(None)
    try:
        yield cluster
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_state(state: InstanceState) -> Callable[[Instance], bool]:
    return lambda instance: instance.state is state


async def test_a_wish_becomes_active_and_ends_when_it_is_removed() -> None:
    async with run_cluster() as cluster:
        await cluster.put_node("a")
        await cluster.put_node("b")
        spec, created = await cluster.wishes.place(make_spec("", stages=2))
        assert created
        loading = await cluster.instance(is_state(InstanceState.LOADING))
        assert [shard.placement.node_id for shard in loading.shards] == ["a", "b"]
        await cluster.run_runners(loading)
        active = await cluster.instance(is_state(InstanceState.ACTIVE))
        assert (active.epoch, active.head_address) == (loading.epoch, "127.0.0.1:6001")
        await cluster.wishes.remove(spec.instance_id)
        view = await cluster.until(lambda view: not view.assignments)
        assert not view.specs


async def test_a_lost_node_moves_its_instance_to_what_is_left_at_a_new_epoch() -> None:
    async with run_cluster() as cluster:
        await cluster.put_node("a")
        await cluster.put_node("b")
        await cluster.wishes.place(make_spec("", stages=2))
        loading = await cluster.instance(is_state(InstanceState.LOADING))
        await cluster.run_runners(loading)
        await cluster.instance(is_state(InstanceState.ACTIVE))
        await cluster.drop_node("b")
        await cluster.run_runners(replace(loading, shards=loading.shards[:1]), RunnerState.BROKEN)
        moved = await cluster.instance(lambda instance: instance.epoch > loading.epoch)
        assert [shard.placement.node_id for shard in moved.shards] == ["a"]
        await cluster.run_runners(moved)
        assert (await cluster.instance(is_state(InstanceState.ACTIVE))).epoch == moved.epoch


async def test_an_instance_whose_nodes_are_all_gone_moves_when_another_node_comes() -> None:
    async with run_cluster() as cluster:
        await cluster.put_node("a")
        await cluster.wishes.place(make_spec())
        await cluster.instance(is_state(InstanceState.LOADING))
        await cluster.drop_node("a")
        assert "demo needs" in (await cluster.instance(is_state(InstanceState.RECOVERING))).message
        await cluster.put_node("c")
        again = await cluster.instance(is_state(InstanceState.LOADING))
        assert [shard.placement.node_id for shard in again.shards] == ["c"]


async def test_a_fresh_start_over_a_kept_store_places_everything_again_without_asking() -> None:
    store = MemoryStore()
    async with run_cluster(store) as cluster:
        await cluster.put_node("a")
        await cluster.wishes.place(make_spec())
        before = await cluster.instance(is_state(InstanceState.LOADING))
        await cluster.drop_node("a")
    async with run_cluster(store) as cluster:
        assert await store.get(KEYS.assignment(before.spec.instance_id))
        await cluster.put_node("b")
        after = await cluster.instance(lambda one: [shard.placement.node_id for shard in one.shards] == ["b"])
        assert after.epoch > before.epoch


async def test_a_fresh_start_with_the_same_nodes_keeps_the_placement_and_its_epoch() -> None:
    store = MemoryStore()
    async with run_cluster(store) as cluster:
        await cluster.put_node("a")
        await cluster.wishes.place(make_spec())
        before = await cluster.instance(is_state(InstanceState.LOADING))
        await cluster.drop_node("a")
    async with run_cluster(store) as cluster:
        await cluster.put_node("a")
        await cluster.run_runners(before)
        assert (await cluster.instance(is_state(InstanceState.ACTIVE))).epoch == before.epoch


async def test_a_card_is_stored_so_that_the_model_is_known_without_its_nodes() -> None:
    async with run_cluster() as cluster:
        await cluster.put_node("a")
        view = await cluster.until(lambda view: MODEL in view.models)
        assert view.models[MODEL].value.card
        await cluster.drop_node("a")
        view = await cluster.until(lambda view: not view.nodes)
        assert view.card(MODEL)


async def test_a_leader_writes_nothing_when_nothing_changes() -> None:
    async with run_cluster() as cluster:
        await cluster.put_node("a")
        await cluster.wishes.place(make_spec())
        loading = await cluster.instance(is_state(InstanceState.LOADING))
        await cluster.run_runners(loading)
        active = await cluster.instance(is_state(InstanceState.ACTIVE))
        revision = cluster.feed.current.revision
        probe = "/paceline/test/probe"
        await cluster.store.transact([], [Put(probe, b"")])
        view = await cluster.until(lambda view: view.revision > revision)
        assert view.revision == revision + 1
        assert active.spec.instance_id == InstanceId("demo-1")
