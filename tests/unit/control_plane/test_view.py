"""A view is the store's content, decoded once per change; what cannot be read is left out."""

import asyncio

import pytest

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import RecordError, decode_spec, encode_model, encode_spec
from paceline_control_plane.store.follow import Mirror
from paceline_control_plane.store.interface import Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.view import ClusterView, make_view
from paceline_services.domain.models import KnownModel, ModelSource
from paceline_services.errors import UnavailableError
from paceline_services.ids import InstanceId, ModelId, Revision
from support.views import make_card, make_spec

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
