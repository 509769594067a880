"""A view is the store's content, decoded once per change; what cannot be read is left out."""

import asyncio

import pytest

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import (
    RecordError,
    decode_spec,
    encode_assignment,
    encode_model,
    encode_node,
    encode_report,
    encode_spec,
)
from paceline_control_plane.store.follow import Mirror
from paceline_control_plane.store.interface import Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed, Held, has_lost_memory
from paceline_control_plane.topology.view import ClusterView, Stored, make_view
from paceline_services.domain.models import KnownModel, ModelSource
from paceline_services.domain.nodes import Node, NodeState
from paceline_services.errors import UnavailableError
from paceline_services.ids import InstanceId, ModelId, NodeId, Revision
from support.views import make_assignment, make_card, make_inventory, make_report, make_spec

KEYS = Keys("test")
INSTANCE = InstanceId("one")


async def mirror_of(*puts: Put) -> Mirror:
    store = MemoryStore()
    for put in puts:
        await store.transact([], [put])
    snapshot = await store.list(KEYS.prefix)
    return Mirror(snapshot.revision, snapshot.entries)


async def test_every_record_is_found_under_its_id() -> None:
    model = KnownModel(ModelSource(ModelId("owner/name"), "owner/name@main"), make_card(model="owner/name"))
    spec = make_spec("one", stages=3)
    view = make_view(
        KEYS,
        await mirror_of(
            Put(KEYS.model(ModelId("owner/name")), encode_model(model)),
            Put(KEYS.spec(INSTANCE), encode_spec(spec)),
            Put(KEYS.leader, b"replica-1"),
        ),
        ClusterView(),
    )
    assert view.models[ModelId("owner/name")].value == model
    assert view.specs[INSTANCE].value == spec
    assert (view.leader_id, view.leader_revision, view.namespace) == ("replica-1", view.revision, "test")


async def test_records_that_did_not_change_are_not_decoded_again() -> None:
    mirror = await mirror_of(Put(KEYS.spec(INSTANCE), encode_spec(make_spec("one"))))
    first = make_view(KEYS, mirror, ClusterView())
    assert make_view(KEYS, mirror, first).specs[INSTANCE] is first.specs[INSTANCE]


async def test_an_unreadable_record_is_left_out() -> None:
    mirror = await mirror_of(
        Put(KEYS.spec(INSTANCE), b"\xff\xff"), Put(KEYS.spec(InstanceId("two")), encode_spec(make_spec("two")))
    )
    assert list(make_view(KEYS, mirror, ClusterView()).specs) == ["two"]
    with pytest.raises(RecordError):
        decode_spec(b"\xff\xff")


async def test_the_feed_tells_waiters_of_changes_and_slow_ones_of_the_latest() -> None:
    store = MemoryStore()
    feed = ClusterFeed(store, KEYS)
    with pytest.raises(UnavailableError):
        _ = feed.current
    following = asyncio.create_task(feed.run())
    async with asyncio.timeout(5):
        first = await feed.changed(None)
        revision = Revision(0)
        for name in ("one", "two", "three"):
            revision = (
                await store.transact([], [Put(KEYS.spec(InstanceId(name)), encode_spec(make_spec(name)))])
            ).revision
        latest = await feed.reached(revision)
        assert set(latest.specs) == {"one", "two", "three"}
        assert not first.specs
        assert await anext(feed.views()) is latest
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_the_last_view_stays_when_the_store_is_gone() -> None:
    store = MemoryStore()
    await store.transact([], [Put(KEYS.spec(INSTANCE), encode_spec(make_spec("one")))])
    feed = ClusterFeed(store, KEYS)
    following = asyncio.create_task(feed.run())
    await feed.changed(None)
    await store.close()
    await following
    assert list(feed.current.specs) == ["one"]


@pytest.mark.parametrize(
    ("before", "after", "is_lost"),
    [
        (("x", 10), ("x", 11), False),
        (("x", 10), ("x", 9), True),  # restored
        (("x", 10), ("", 11), True),  # set up anew
        (("x", 10), ("y", 11), True),
        (("", 10), ("x", 11), False),  # upgraded
    ],
)
def test_a_store_that_is_another_one_or_older_has_lost_its_memory(
    before: tuple[str, int], after: tuple[str, int], is_lost: bool
) -> None:
    one, other = (ClusterView(store_id=name, revision=Revision(revision)) for name, revision in (before, after))
    assert has_lost_memory(one, other) is is_lost


@pytest.mark.parametrize(
    ("back", "is_refilled"),
    [({"a": 21, "b": 22}, True), ({"a": 21}, False), ({"a": 21, "b": 19}, False), ({"a": 21, "b": 22, "c": 23}, True)],
)
def test_a_store_is_refilled_when_every_node_has_joined_it(back: dict[str, int], is_refilled: bool) -> None:
    def at(revisions: dict[str, int]) -> ClusterView:
        nodes = {
            NodeId(name): Stored(Node(make_inventory(name), NodeState.UP), Revision(revision))
            for name, revision in revisions.items()
        }
        return ClusterView(nodes=nodes)

    assert Held(at({"a": 900, "b": 901}), Revision(20)).is_refilled(at(back)) is is_refilled


async def test_a_record_of_another_history_with_the_same_revision_is_decoded_anew() -> None:
    first = await mirror_of(Put(KEYS.store, b"x"), Put(KEYS.spec(INSTANCE), encode_spec(make_spec("one"))))
    other = await mirror_of(Put(KEYS.store, b"y"), Put(KEYS.spec(INSTANCE), encode_spec(make_spec("one", stages=2))))
    before = make_view(KEYS, first, ClusterView())
    assert make_view(KEYS, other, before).specs[INSTANCE].value.num_stages == 2


async def test_what_a_lost_node_said_last_is_kept_while_it_holds_a_shard() -> None:
    node, report = encode_node(Node(make_inventory("a"), NodeState.UP)), encode_report(make_report())
    puts = [
        Put(KEYS.spec(INSTANCE), encode_spec(make_spec("one"))),
        Put(KEYS.assignment(INSTANCE), encode_assignment(make_assignment("a", instance="one"))),
    ]
    there = make_view(
        KEYS,
        await mirror_of(*puts, Put(KEYS.node(NodeId("a")), node), Put(KEYS.report(NodeId("a")), report)),
        ClusterView(),
    )
    assert not there.last_reports
    gone = make_view(KEYS, Mirror(Revision(99), (await mirror_of(*puts)).values()), there)
    assert gone.last_reports == {NodeId("a"): make_report()}
    assert gone.report(NodeId("a")).models == ()
    free = make_view(KEYS, Mirror(Revision(100), (await mirror_of(puts[0])).values()), gone)
    assert not free.last_reports
