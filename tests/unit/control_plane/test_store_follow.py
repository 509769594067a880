"""Mirrors: complete at once, new after every change, listed anew after lost history, patient with a store that is away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from paceline_control_plane.store.follow import Mirror, follow
from paceline_control_plane.store.interface import (
    CompactedError,
    Delete,
    Entry,
    Event,
    EventBatch,
    Put,
    Snapshot,
    StoreUnavailableError,
)
from paceline_control_plane.store.memory import MemoryStore
from paceline_services.backoff import Backoff
from paceline_services.ids import Revision

AT_ONCE = Backoff(first_s=0.0, limit_s=0.0)


class TroubledStore(MemoryStore):
    """A MemoryStore that can be away for some lists, and whose watches can lose their history once."""

    def __init__(self) -> None:
        super().__init__()
        self.failing_lists = 0
        self.watch_loses_history = False

    async def list(self, prefix: str) -> Snapshot:
        if self.failing_lists:
            self.failing_lists -= 1
            raise StoreUnavailableError("away")
        return await super().list(prefix)

    async def watch(self, prefix: str, after: Revision) -> AsyncGenerator[EventBatch, None]:
        if self.watch_loses_history:
            self.watch_loses_history = False
            raise CompactedError(Revision(after + 1))
        async with aclosing(super().watch(prefix, after)) as batches:
            async for batch in batches:
                yield batch


def entry(key: str, revision: int) -> Entry:
    return Entry(key, b"", Revision(revision), Revision(revision))


def test_mirror_never_changes_itself() -> None:
    before = Mirror(Revision(2), [entry("/a", 1), entry("/b", 2)])
    events = [Event("/a", None, Revision(3)), Event("/c", entry("/c", 4), Revision(4)), Event("/x", None, Revision(4))]
    after = before.changed_by(events, Revision(4))
    assert (set(before), before.revision) == ({"/a", "/b"}, 2)
    assert (set(after), after.revision, len(after)) == ({"/b", "/c"}, 4, 2)


async def test_every_change_makes_a_new_mirror() -> None:
    store = MemoryStore()
    await store.transact([], [Put("/p/a", b"1"), Put("/q", b"")])
    async with asyncio.timeout(5), aclosing(follow(store, "/p/")) as mirrors:
        assert [(key, found.value) for key, found in (await anext(mirrors)).items()] == [("/p/a", b"1")]
        await store.transact([], [Put("/q", b"2")])
        await store.transact([], [Put("/p/b", b"2")])
        assert set(await anext(mirrors)) == {"/p/a", "/p/b"}
        await store.transact([], [Delete("/p/a")])
        assert set(await anext(mirrors)) == {"/p/b"}


async def test_lost_history_leads_to_a_new_list_however_long_the_store_is_away() -> None:
    store = TroubledStore()
    store.watch_loses_history = True
    async with asyncio.timeout(5), aclosing(follow(store, "/", AT_ONCE)) as mirrors:
        assert not await anext(mirrors)
        await store.transact([], [Put("/a", b"")])
        store.failing_lists = 5
        assert set(await anext(mirrors)) == {"/a"}
        await store.transact([], [Put("/b", b"")])
        assert set(await anext(mirrors)) == {"/a", "/b"}


async def test_store_that_is_away_from_the_start_is_told() -> None:
    store = TroubledStore()
    store.failing_lists = 1
    with pytest.raises(StoreUnavailableError):
        await anext(follow(store, "/"))


async def test_closing_the_store_ends_the_following() -> None:
    store = MemoryStore()
    async with asyncio.timeout(5), aclosing(follow(store, "/")) as mirrors:
        assert not await anext(mirrors)
        following = asyncio.ensure_future(anext(mirrors))
        await store.close()
        with pytest.raises(StopAsyncIteration):
            await following


async def test_closing_the_store_ends_the_wait_for_a_list() -> None:
    store = TroubledStore()
    store.watch_loses_history = True
    async with asyncio.timeout(5), aclosing(follow(store, "/", AT_ONCE)) as mirrors:
        await anext(mirrors)
        store.failing_lists = 3
        await store.close()
        assert [mirror async for mirror in mirrors] == []
