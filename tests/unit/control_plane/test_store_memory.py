"""What MemoryStore has beyond the contract: an injected clock, and history that can be forgotten."""

import asyncio
from contextlib import aclosing

import pytest

from paceline_control_plane.store.interface import CompactedError, LeaseExpiredError, Put, StoreClosedError
from paceline_control_plane.store.memory import MemoryStore
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Revision


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_lease_ends_by_the_given_clock() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    lease = await store.grant_lease(5)
    await store.transact([], [Put("/a", b"", lease)])
    clock.now_s += 4.9
    assert await store.get("/a") is not None
    await store.renew_lease(lease)
    clock.now_s += 4.9
    assert await store.get("/a") is not None
    clock.now_s += 0.2
    assert await store.get("/a") is None
    with pytest.raises(LeaseExpiredError):
        await store.renew_lease(lease)


async def test_expiry_reaches_watchers_when_the_clock_is_turned() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    put = await store.transact([], [Put("/a", b"", await store.grant_lease(3600))])
    async with aclosing(store.watch("/", put.revision)) as batches:
        next_batch = asyncio.ensure_future(anext(batches))
        clock.now_s += 3601
        store.expire_leases()
        (event,) = (await asyncio.wait_for(next_batch, 5)).events
    assert (event.key, event.entry) == ("/a", None)


async def test_keys_of_one_lease_go_at_one_revision() -> None:
    store = MemoryStore(Clock())
    lease = await store.grant_lease(5)
    put = await store.transact([], [Put(key, b"", lease) for key in ("/a", "/b")])
    await store.revoke_lease(lease)
    async with aclosing(store.watch("/", put.revision)) as batches:
        batch = await asyncio.wait_for(anext(batches), 5)
    assert [(event.key, event.revision) for event in batch.events] == [("/a", batch.revision), ("/b", batch.revision)]


@pytest.mark.parametrize("revision", [0, 3, 5])
async def test_compaction_backwards_or_ahead_is_refused(revision: int) -> None:
    store = MemoryStore()
    for _ in range(3):
        await store.transact([], [Put("/a", b"")])
    store.compact(Revision(3))
    with pytest.raises(InvalidRequestError):
        store.compact(Revision(revision))


async def test_watcher_that_fell_behind_a_compaction_is_told() -> None:
    store = MemoryStore()
    async with aclosing(store.watch("/", Revision(1))) as batches:
        await store.transact([], [Put("/a", b"1")])
        assert (await anext(batches)).revision == 2
        for value in (b"2", b"3"):
            await store.transact([], [Put("/a", value)])
        store.compact(Revision(4))
        with pytest.raises(CompactedError):
            await anext(batches)


async def test_closed_store_refuses_everything() -> None:
    store = MemoryStore()
    lease = await store.grant_lease(1)
    await store.close()
    for call in (
        store.get("/a"),
        store.list("/"),
        store.transact([], []),
        store.grant_lease(1),
        store.renew_lease(lease),
    ):
        with pytest.raises(StoreClosedError):
            await call
