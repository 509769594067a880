"""At most one replica leads; when it ends, falls silent or loses the store, it stops and another one takes over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from paceline_control_plane.election.election import Election, Leadership
from paceline_control_plane.store.interface import Delete, LeaseId, Put, StoreUnavailableError
from paceline_control_plane.store.memory import MemoryStore
from paceline_services.ids import Revision

KEY = "/paceline/test/leader"


class FlakyStore(MemoryStore):
    """A store that can be cut off from one replica."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self.loses_answers = False

    async def renew_lease(self, lease: LeaseId) -> None:
        if self.is_cut:
            raise StoreUnavailableError("cut off")
        await super().renew_lease(lease)

    async def transact(self, guards, changes):  # type: ignore[no-untyped-def]
        outcome = await super().transact(guards, changes)
        if self.loses_answers:
            raise StoreUnavailableError("answer lost")
        return outcome


class Candidate:
    """A replica that records when it leads."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        self.election = Election(store, KEY, name, ttl_s=1)
        self.won: asyncio.Queue[Leadership] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def lead(self, leadership: Leadership) -> None:
        self.won.put_nowait(leadership)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @asynccontextmanager
    async def stands(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.election.campaign(self.lead))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_only_one_leads_and_the_next_takes_over_when_it_stops() -> None:
    store = MemoryStore()
    first, second = Candidate(store, "first"), Candidate(store, "second")
    async with asyncio.timeout(5), first.stands():
        leadership = await first.won.get()
        async with second.stands():
            entry = await store.get(KEY)
            assert entry
            assert (entry.value, entry.create_revision) == (b"first", leadership.revision)
            assert second.won.empty()
    async with asyncio.timeout(5), second.stands():
        successor = await second.won.get()
    assert successor.revision > leadership.revision
    assert await store.get(KEY) is None


async def test_a_clean_stop_hands_over_without_waiting_for_the_lease() -> None:
    store = MemoryStore()
    first, second = Candidate(store, "first"), Candidate(store, "second")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5), first.stands():
        await first.won.get()
        task = asyncio.create_task(second.election.campaign(second.lead))
    stopped = loop.time()
    await second.won.get()
    assert loop.time() - stopped < 0.5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_leader_that_cannot_renew_stops_by_its_own_clock() -> None:
    store = FlakyStore()
    first = Candidate(store, "first")
    async with asyncio.timeout(10), first.stands():
        await first.won.get()
        store.is_cut = True
        await first.ended.wait()
        store.is_cut = False
        assert (await first.won.get()).replica_id == "first"


async def test_a_leader_whose_lease_is_gone_stops() -> None:
    store = MemoryStore()
    first = Candidate(store, "first")
    async with asyncio.timeout(10), first.stands():
        leadership = await first.won.get()
        entry = await store.get(KEY)
        assert entry
        await store.revoke_lease(entry.lease)
        await first.ended.wait()
        assert (await first.won.get()).revision > leadership.revision


async def test_writes_of_a_leader_that_was_replaced_are_refused() -> None:
    store = MemoryStore()
    first = Candidate(store, "first")
    async with asyncio.timeout(5), first.stands():
        old = await first.won.get()
    assert not (await store.transact([old.guard], [Put("/paceline/test/x", b"late")])).succeeded
    async with asyncio.timeout(5), first.stands():
        new = await first.won.get()
        assert (await store.transact([new.guard], [Put("/paceline/test/x", b"good")])).succeeded
        assert not (await store.transact([old.guard], [Put("/paceline/test/x", b"late")])).succeeded


async def test_a_lost_answer_does_not_lose_the_leadership() -> None:
    store = FlakyStore()
    store.loses_answers = True
    first = Candidate(store, "first")
    async with asyncio.timeout(5), first.stands():
        leadership = await first.won.get()
        entry = await store.get(KEY)
        assert entry
        assert entry.create_revision == leadership.revision


async def test_a_key_that_someone_deletes_is_stood_for_again() -> None:
    store = MemoryStore()
    await store.transact([], [Put(KEY, b"stranger")])
    first = Candidate(store, "first")
    async with asyncio.timeout(5), first.stands():
        assert first.won.empty()
        await store.transact([], [Delete(KEY)])
        assert (await first.won.get()).revision > Revision(0)
