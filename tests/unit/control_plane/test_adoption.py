"""A store that lost its contents gets back what nodes run, as it was; what was removed stays removed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import encode_assignment, encode_spec
from paceline_control_plane.registry.adoption import adopt, read_name
from paceline_control_plane.registry.registry import Registry
from paceline_control_plane.store.follow import Mirror
from paceline_control_plane.store.interface import Delete, Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.view import ClusterView, make_view
from paceline_services.domain.instances import Assignment, InstanceRecord, InstanceSpec
from paceline_services.domain.nodes import LastOrders, NodeReport
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, InstanceId, NodeId, Revision
from support.views import INSTANCE, make_assignment, make_inventory, make_report, make_spec

KEYS = Keys("test")
A = NodeId("a")


def placed(epoch: int, instance: str = INSTANCE) -> Assignment:
    return replace(make_assignment("a", instance=instance), epoch=Epoch(epoch))


def told_of(store_id: str, *epochs: int, revision: int = 100) -> LastOrders:
    records = tuple(InstanceRecord(make_spec(), placed(epoch)) for epoch in epochs)
    return LastOrders(store_id, Revision(revision), records)


async def put(store: MemoryStore, spec: InstanceSpec | None, assignment: Assignment | None) -> None:
    puts = [Put(KEYS.spec(spec.instance_id), encode_spec(spec))] if spec else []
    puts += [Put(KEYS.assignment(assignment.instance_id), encode_assignment(assignment))] if assignment else []
    await store.transact([], puts)


async def view_of(store: MemoryStore) -> ClusterView:
    snapshot = await store.list(KEYS.prefix)
    return make_view(KEYS, Mirror(snapshot.revision, snapshot.entries), ClusterView())


async def test_a_store_gets_one_name_whoever_asks_first() -> None:
    store = MemoryStore()
    names = await asyncio.gather(*(read_name(store, KEYS) for _ in range(5)))
    assert len({name.store_id for name in names}) == 1


async def test_an_empty_store_is_filled_and_epochs_are_kept() -> None:
    store = MemoryStore()
    store_id = await adopt(store, KEYS, told_of("before", 70))
    view = await view_of(store)
    assert view.store_id == store_id != "before"
    assert view.is_current(INSTANCE)
    assert (view.epoch(INSTANCE), view.specs[INSTANCE].value) == (70, make_spec())
    revision = view.revision
    await adopt(store, KEYS, told_of("before", 70))
    assert (await view_of(store)).revision == revision


async def test_of_two_nodes_that_hand_back_a_record_the_first_wins_unless_the_other_knows_a_later_epoch() -> None:
    store = MemoryStore()
    for epochs, kept in (([70], 70), ([60], 70), ([71], 71)):
        await adopt(store, KEYS, told_of("before", *epochs))
        assert (await view_of(store)).epoch(INSTANCE) == kept


@pytest.mark.parametrize(
    ("spec", "assignment", "epoch"),
    [
        (make_spec(), None, 70),  # placed by hand again before any node came: the same wish
        (make_spec(), placed(71), 71),  # the leader was faster
        (make_spec(), placed(69), 70),  # restored
        (make_spec(stages=2), None, 70),
        (make_spec(model="another"), None, 0),  # the id means something else by now
        (None, placed(69), 70),
    ],
)
async def test_what_the_store_holds_by_now_counts(
    spec: InstanceSpec | None, assignment: Assignment | None, epoch: int
) -> None:
    store = MemoryStore()
    await put(store, spec, assignment)
    await adopt(store, KEYS, told_of("before", 70))
    assert (await view_of(store)).epoch(INSTANCE) == epoch


async def test_what_was_removed_in_the_same_history_stays_removed() -> None:
    store = MemoryStore()
    name = await read_name(store, KEYS)
    await put(store, make_spec(), placed(70))
    await store.transact([], [Delete(KEYS.spec(INSTANCE)), Delete(KEYS.assignment(INSTANCE))])
    assert await adopt(store, KEYS, told_of(name.store_id, 70, revision=3)) == name.store_id
    assert not (await view_of(store)).specs


async def test_a_store_that_went_back_gets_what_it_lost_and_another_name() -> None:
    store = MemoryStore()
    name = await read_name(store, KEYS)
    await put(store, make_spec(), placed(50))
    renamed = await adopt(store, KEYS, told_of(name.store_id, 70, revision=60))
    assert renamed != name.store_id
    assert (await view_of(store)).epoch(INSTANCE) == 70


async def test_an_agent_that_remembers_nothing_changes_nothing() -> None:
    store = MemoryStore()
    name = await read_name(store, KEYS)
    for told in (None, LastOrders("", Revision(0)), told_of("", 70)):
        assert await adopt(store, KEYS, told) == name.store_id
    assert not (await view_of(store)).specs


class ForgetfulStore(MemoryStore):
    """A store that can lose everything, as an etcd that was set up anew: followers are told to list again."""

    def lose_everything(self) -> None:
        self._entries.clear()
        self._leases.clear()
        self._history.clear()
        self._revision = Revision(1)
        self._compacted = Revision(10_000)
        self._wake_watchers()

    def heal(self) -> None:
        self._compacted = Revision(0)


@asynccontextmanager
async def following(store: MemoryStore) -> AsyncIterator[ClusterFeed]:
    feed = ClusterFeed(store, KEYS)
    task = asyncio.create_task(feed.run())
    try:
        await feed.changed(None)
        yield feed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reports(queue: "asyncio.Queue[NodeReport]") -> AsyncIterator[NodeReport]:
    while True:
        yield await queue.get()


async def test_a_node_is_never_told_to_end_what_a_store_forgot() -> None:
    store = ForgetfulStore()
    async with asyncio.timeout(10), following(store) as feed:
        registry = Registry(store, KEYS, feed, ttl_s=5)
        queue: asyncio.Queue[NodeReport] = asyncio.Queue()
        queue.put_nowait(replace(make_report(), inventory=make_inventory("a")))
        async with aclosing(registry.join(reports(queue))) as orders:
            await anext(orders)
            await put(store, make_spec(), placed(70))
            told = await anext(orders)
            while not told.records:
                told = await anext(orders)
            store.lose_everything()
            await feed.until(lambda view: not view.store_id)
            store.heal()
            with pytest.raises(UnavailableError, match="lost its memory"):
                while True:
                    assert (await anext(orders)).shards == told.shards
        assert feed.shown.epoch(INSTANCE) == 70  # clients see what was, until nodes are back
        remembered = LastOrders(told.store_id, told.revision, told.records)
        queue.put_nowait(replace(make_report(), inventory=make_inventory("a"), last_orders=remembered))
        async with aclosing(registry.join(reports(queue))) as orders:
            again = await anext(orders)
        assert (again.shards, again.records) == (told.shards, told.records)
        assert again.store_id != told.store_id
        assert feed.shown is feed.current
        assert feed.shown.epoch(INSTANCE) == 70


async def test_a_replica_that_watched_the_wrong_history_lists_again_when_something_is_missing() -> None:
    store = ForgetfulStore()
    async with asyncio.timeout(10), following(store) as feed:
        await put(store, make_spec("old"), None)
        await feed.until(lambda view: InstanceId("old") in view.specs)
        store.lose_everything()
        store.heal()
        store._revision = feed.current.revision
        await put(store, make_spec("new"), None)
        await feed.until(lambda view: InstanceId("old") not in view.specs)
        assert set(feed.current.specs) == {InstanceId("new")}
