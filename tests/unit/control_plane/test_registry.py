"""A node is in the store for as long as its agent reports, and its agent hears of every change of its work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import decode_node, encode_assignment, encode_spec
from paceline_control_plane.registry.registry import Pace, Registry
from paceline_control_plane.store.interface import Delete, Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import InstanceRecord
from paceline_services.domain.nodes import NodeInventory, NodeOrders, NodeReport, NodeState
from paceline_services.errors import ConflictError, InvalidRequestError, TimeoutExpiredError, UnavailableError
from paceline_services.ids import Epoch, NodeId
from support.views import make_assignment, make_inventory, make_report, make_spec

KEYS = Keys("test")
A = NodeId("a")
PACE = Pace()


class Agent:
    """The agent's end of a stream: reports go in by hand."""

    def __init__(self, inventory: NodeInventory) -> None:
        self.inventory = inventory
        self.queue: asyncio.Queue[NodeReport | None] = asyncio.Queue()
        self.report(replace(make_report(), inventory=inventory))

    def report(self, report: NodeReport) -> None:
        self.queue.put_nowait(report)

    def goodbye(self) -> None:
        self.queue.put_nowait(None)

    async def reports(self) -> AsyncIterator[NodeReport]:
        while (report := await self.queue.get()) is not None:
            yield report


class Replica:
    """A replica's registry over a store, with its feed."""

    def __init__(self, store: MemoryStore, pace: Pace) -> None:
        self.store = store
        self.feed = ClusterFeed(store, KEYS)
        self.registry = Registry(store, KEYS, self.feed, ttl_s=5, pace=pace)

    async def until_view(self, is_wanted: Callable[[ClusterView], bool]) -> ClusterView:
        async with asyncio.timeout(5), aclosing(self.feed.views()) as views:
            async for view in views:
                if is_wanted(view):
                    return view
        raise AssertionError


@asynccontextmanager
async def run_replica(store: MemoryStore | None = None, pace: Pace = PACE) -> AsyncIterator[Replica]:
    replica = Replica(store or MemoryStore(), pace)
    following = asyncio.create_task(replica.feed.run())
    try:
        yield replica
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_node_is_stored_with_its_first_report() -> None:
    async with (
        run_replica() as replica,
        aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders,
    ):
        first = await anext(orders)
        view = replica.feed.current
        assert first == NodeOrders(1, heartbeat_interval_ms=1000, store_id=view.store_id, revision=view.revision)
        assert view.nodes[A].value.inventory == make_inventory("a")
        assert view.nodes[A].value.join_time is not None
        assert view.report(A).models == make_report().models


async def test_orders_follow_changes_of_the_cluster() -> None:
    async with (
        run_replica() as replica,
        aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders,
    ):
        await anext(orders)
        spec, assignment = make_spec(location="/models/demo"), make_assignment("a")
        await replica.store.transact([], [Put(KEYS.spec(spec.instance_id), encode_spec(spec))])
        with_model = await anext(orders)
        assert (with_model.sequence, with_model.models, with_model.shards) == (2, (spec.source,), ())
        outcome = await replica.store.transact(
            [], [Put(KEYS.assignment(spec.instance_id), encode_assignment(assignment))]
        )
        with_shard = await anext(orders)
        assert [(shard.epoch, shard.start_layer, shard.end_layer) for shard in with_shard.shards] == [
            (Epoch(outcome.revision), 0, 30)
        ]
        await replica.store.transact([], [Delete(KEYS.spec(spec.instance_id))])
        last, view = await anext(orders), replica.feed.current
        assert (last.sequence, last.shards, last.models, last.records) == (4, (), (), ())
        assert (last.store_id, last.revision) == (view.store_id, view.revision)


async def test_orders_are_repeated_so_that_a_hung_replica_is_told_from_a_quiet_one() -> None:
    async with run_replica(pace=Pace(repeat_s=0.05)) as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders, asyncio.timeout(5):
            first = await anext(orders)
            assert await anext(orders) == replace(first, sequence=2)


async def test_changes_are_stored_and_heartbeats_are_not() -> None:
    async with run_replica() as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders:
            await anext(orders)
            revision = replica.feed.current.revision
            for _ in range(5):
                agent.report(make_report())
            agent.report(make_report(models=[]))
            view = await replica.until_view(lambda view: not view.report(A).models)
            assert view.revision == revision + 1


async def test_a_goodbye_ends_the_node_at_once() -> None:
    async with run_replica() as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders:
            await anext(orders)
            agent.goodbye()
            assert [one async for one in orders] == []
        assert [entry.key for entry in (await replica.store.list(KEYS.prefix)).entries] == [KEYS.store]


async def test_a_stream_that_breaks_leaves_the_lease_to_run_out() -> None:
    now = 0.0
    async with run_replica(MemoryStore(lambda: now)) as replica:
        async with aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders:
            await anext(orders)
        view = await replica.until_view(lambda view: view.is_silent(A))
        assert view.is_up(A)
        now = 5.1
        replica.store.expire_leases()
        await replica.until_view(lambda view: not view.is_up(A))


async def test_an_agent_that_falls_silent_is_dropped() -> None:
    async with run_replica(pace=Pace(silence_s=0.05)) as replica:
        with pytest.raises(TimeoutExpiredError):
            _ = [one async for one in replica.registry.join(Agent(make_inventory("a")).reports())]
        assert replica.feed.current.is_up(A)


async def test_an_agent_joins_again_over_another_replica_without_a_gap() -> None:
    store = MemoryStore()
    async with run_replica(store) as first, run_replica(store) as second:
        agent = Agent(make_inventory("a"))
        async with aclosing(first.registry.join(agent.reports())) as orders:
            await anext(orders)
            joined = first.feed.current.nodes[A].value.join_time
            async with aclosing(second.registry.join(Agent(make_inventory("a")).reports())) as again:
                await anext(again)
                assert second.feed.current.nodes[A].value.join_time == joined
                await first.until_view(lambda view: view.nodes[A].revision == second.feed.current.nodes[A].revision)
                agent.report(make_report())
                with pytest.raises(UnavailableError, match="joined again over another stream"):
                    await read_until_end(orders)
        assert second.feed.current.is_up(A)


async def read_until_end(orders: AsyncIterator[NodeOrders]) -> None:
    async with asyncio.timeout(5):
        async for _ in orders:
            pass


async def test_a_restarted_agent_on_the_same_machine_takes_over_at_once() -> None:
    async with run_replica() as replica:
        old = Agent(make_inventory("a", agent_id="old"))
        async with aclosing(replica.registry.join(old.reports())) as old_orders:
            await anext(old_orders)
            async with aclosing(replica.registry.join(Agent(make_inventory("a", agent_id="new")).reports())) as orders:
                await anext(orders)
                assert replica.feed.current.nodes[A].value.inventory.agent_id == "new"
                old.report(make_report(models=[]))
                with pytest.raises(ConflictError):
                    await read_until_end(old_orders)
                assert replica.feed.current.is_up(A)


async def test_a_copied_node_id_on_another_machine_is_refused_and_changes_nothing() -> None:
    async with (
        run_replica() as replica,
        aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders,
    ):
        await anext(orders)
        copy = Agent(make_inventory("a", agent_id="copy", hostname="elsewhere"))
        with pytest.raises(ConflictError) as caught:
            await anext(replica.registry.join(copy.reports()))
        assert caught.value.reason == "NODE_ID_TAKEN"
        assert replica.feed.current.nodes[A].value.inventory.hostname == "host-a"


async def test_a_node_whose_lease_ran_out_enters_again_with_its_next_report() -> None:
    now = 0.0
    async with run_replica(MemoryStore(lambda: now)) as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders:
            await anext(orders)
            now = 10.0
            replica.store.expire_leases()
            await replica.until_view(lambda view: not view.is_up(A))
            agent.report(make_report(models=[]))
            view = await replica.until_view(lambda view: view.is_up(A))
            assert view.report(A).models == ()


async def test_an_unusable_later_report_ends_the_stream() -> None:
    async with run_replica() as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders:
            await anext(orders)
            agent.report(replace(make_report(), inventory=make_inventory("b")))
            with pytest.raises(InvalidRequestError):
                await read_until_end(orders)


async def test_a_node_that_joins_again_is_no_longer_silent() -> None:
    async with run_replica() as replica:
        async with aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders:
            await anext(orders)
        await replica.until_view(lambda view: view.is_silent(A))
        async with aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders:
            await anext(orders)
            assert not replica.feed.current.is_silent(A)


async def test_streams_that_end_with_their_replica_say_nothing_about_their_nodes() -> None:
    async with run_replica() as replica:
        async with aclosing(replica.registry.join(Agent(make_inventory("a")).reports())) as orders:
            await anext(orders)
            replica.registry.close()
        stored = await replica.store.get(KEYS.node(A))
        assert stored and decode_node(stored.value).state is NodeState.UP


async def test_a_node_keeps_a_copy_of_what_it_takes_part_in() -> None:
    async with run_replica() as replica:
        agent = Agent(make_inventory("a"))
        async with aclosing(replica.registry.join(agent.reports())) as orders:
            await anext(orders)
            spec, mine, other = make_spec(), replace(make_assignment("a"), epoch=Epoch(40)), make_spec("other")
            elsewhere = make_assignment("b", instance="other")
            puts = [Put(KEYS.spec(one.instance_id), encode_spec(one)) for one in (spec, other)]
            await replica.store.transact([], puts)
            placed = [Put(KEYS.assignment(one.instance_id), encode_assignment(one)) for one in (mine, elsewhere)]
            outcome = await replica.store.transact([], placed)
            told = await anext(orders)
            while not told.records:
                told = await anext(orders)
            assert (told.records, told.revision) == ((InstanceRecord(spec, mine),), outcome.revision)
            assert [shard.epoch for shard in told.shards] == [40]


async def test_an_agent_of_version_1_is_told_that_version() -> None:
    old = replace(make_inventory("a"), protocol_version=1, oldest_protocol_version=0)
    async with run_replica() as replica, aclosing(replica.registry.join(Agent(old).reports())) as orders:
        assert (await anext(orders)).protocol_version == 1
