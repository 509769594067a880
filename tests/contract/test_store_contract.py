"""What every Store promises, over its in-process twin and over real etcd with one and with three members."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from paceline_control_plane.store.etcd import make_etcd_store
from paceline_control_plane.store.follow import follow
from paceline_control_plane.store.interface import (
    NO_LEASE,
    CompactedError,
    CreatedAt,
    Delete,
    Event,
    EventBatch,
    Guard,
    LeaseExpiredError,
    LeaseId,
    ModifiedAt,
    Put,
    Store,
    StoreClosedError,
)
from paceline_control_plane.store.memory import MemoryStore
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Revision
from support.etcd import EtcdCluster, compact, running_etcd

NEVER = Revision(0)
WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A store under test, a prefix that is its own, and a way to forget its history."""

    store: Store
    prefix: str
    compact: Callable[[Revision], Awaitable[None]]

    async def put(self, name: str, value: bytes = b"", lease: LeaseId = NO_LEASE) -> Revision:
        outcome = await self.store.transact([], [Put(self.prefix + name, value, lease)])
        assert outcome.succeeded
        return outcome.revision

    async def revision(self) -> Revision:
        return (await self.store.list(self.prefix)).revision


@pytest.fixture(scope="module", params=["memory", "etcd-1", "etcd-3"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster | None]:
    if request.param == "memory":
        yield None
        return
    with running_etcd(tmp_path_factory.mktemp("etcd"), int(request.param[-1])) as running:
        yield running


@pytest.fixture
async def subject(cluster: EtcdCluster | None, request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    prefix = f"/{request.node.name}/"
    if cluster is None:
        memory = MemoryStore()

        async def compact_memory(revision: Revision) -> None:
            memory.compact(revision)

        yield Subject(memory, prefix, compact_memory)
        await memory.close()
        return
    settings = cluster.settings()
    store = make_etcd_store(settings)
    yield Subject(store, prefix, lambda revision: compact(settings, revision))
    await store.close()


async def take(batches: AsyncGenerator[EventBatch, None], num_events: int) -> list[Event]:
    """The next events of a watch; fails when they do not come, or more come with them."""
    events: list[Event] = []
    async with asyncio.timeout(WAIT_S):
        while len(events) < num_events:
            events += (await anext(batches)).events
    assert len(events) == num_events
    return events


async def test_missing_key_reads_as_none_and_lists_empty(subject: Subject) -> None:
    assert await subject.store.get(subject.prefix + "nothing") is None
    assert (await subject.store.list(subject.prefix)).entries == ()


async def test_write_is_read_back_with_its_revisions(subject: Subject) -> None:
    first = await subject.put("a", b"\x00\xff")
    second = await subject.put("a", b"")
    entry = await subject.store.get(subject.prefix + "a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.mod_revision) == (b"", first, second)
    assert second > first


async def test_key_created_anew_after_deletion_has_a_new_create_revision(subject: Subject) -> None:
    key = subject.prefix + "a"
    first = await subject.put("a")
    await subject.store.transact([], [Delete(key)])
    assert not (await subject.store.transact([CreatedAt(key, first)], [Put(key, b"old")])).succeeded
    second = await subject.put("a")
    entry = await subject.store.get(key)
    assert entry is not None
    assert entry.create_revision == second


async def test_failed_guard_changes_nothing(subject: Subject) -> None:
    revision = await subject.put("a", b"1")
    key, other = subject.prefix + "a", subject.prefix + "b"
    wrong: list[Guard] = [
        CreatedAt(key, NEVER),
        ModifiedAt(key, NEVER),
        ModifiedAt(other, revision),
        CreatedAt(other, revision),
    ]
    for guard in wrong:
        outcome = await subject.store.transact([ModifiedAt(key, revision), guard], [Put(key, b"2"), Put(other, b"2")])
        assert not outcome.succeeded
        assert outcome.revision == revision
    snapshot = await subject.store.list(subject.prefix)
    assert [entry.value for entry in snapshot.entries] == [b"1"]
    assert snapshot.revision == revision


async def test_guards_that_hold_let_changes_through(subject: Subject) -> None:
    key, other = subject.prefix + "a", subject.prefix + "b"
    created = await subject.put("a", b"1")
    modified = await subject.put("a", b"2")
    guards: list[Guard] = [
        CreatedAt(key, created),
        ModifiedAt(key, modified),
        CreatedAt(other, NEVER),
        ModifiedAt(other, NEVER),
    ]
    outcome = await subject.store.transact(guards, [Delete(key), Put(other, b"3")])
    assert outcome.succeeded
    assert [entry.key for entry in (await subject.store.list(subject.prefix)).entries] == [other]


async def test_one_of_many_rivals_creates_a_key(subject: Subject) -> None:
    key = subject.prefix + "leader"
    rivals = [subject.store.transact([CreatedAt(key, NEVER)], [Put(key, bytes([i]))]) for i in range(20)]
    outcomes = await asyncio.gather(*rivals)
    winners = [i for i, outcome in enumerate(outcomes) if outcome.succeeded]
    assert len(winners) == 1
    entry = await subject.store.get(key)
    assert entry is not None
    assert entry.value == bytes(winners)


async def test_changes_of_a_transaction_share_one_revision_and_one_batch(subject: Subject) -> None:
    before = await subject.revision()
    names = [f"{number:03}" for number in range(128)]
    outcome = await subject.store.transact([], [Put(subject.prefix + name, b"x") for name in names])
    snapshot = await subject.store.list(subject.prefix)
    assert {entry.mod_revision for entry in snapshot.entries} == {outcome.revision}
    async with aclosing(subject.store.watch(subject.prefix, before)) as batches:
        batch = await asyncio.wait_for(anext(batches), WAIT_S)
    assert sorted(event.key for event in batch.events) == [subject.prefix + name for name in names]
    assert batch.revision == outcome.revision


async def test_deleting_what_is_not_there_is_no_change(subject: Subject) -> None:
    before = await subject.put("a")
    outcome = await subject.store.transact([], [Delete(subject.prefix + "nothing")])
    assert outcome.succeeded
    assert outcome.revision == before


@pytest.mark.parametrize("names", [("a", "a"), ("",)])
async def test_unusable_changes_are_refused(subject: Subject, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="key of its own"):
        await subject.store.transact([], [Put(subject.prefix + name if name else "", b"") for name in names])


async def test_too_many_changes_are_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequestError, match="128"):
        await subject.store.transact([], [Delete(subject.prefix + str(number)) for number in range(129)])


async def test_list_holds_what_begins_with_the_prefix_in_order(subject: Subject) -> None:
    for name in ("b", "aé/z", "a", "aé/ä", "aê", "a/1"):
        await subject.put(name)
    keys = [entry.key.removeprefix(subject.prefix) for entry in (await subject.store.list(subject.prefix)).entries]
    assert keys == sorted(keys) == ["a", "a/1", "aé/z", "aé/ä", "aê", "b"]
    below = [
        entry.key.removeprefix(subject.prefix) for entry in (await subject.store.list(subject.prefix + "aé")).entries
    ]
    assert below == ["aé/z", "aé/ä"]
    everything = [entry.key for entry in (await subject.store.list("")).entries]
    assert set(everything) >= {subject.prefix + key for key in keys}


async def test_list_longer_than_a_page_is_one_snapshot(subject: Subject) -> None:
    keys = [f"{subject.prefix}{number:05}" for number in range(2100)]
    for start in range(0, len(keys), 100):
        await subject.store.transact([], [Put(key, b"1") for key in keys[start : start + 100]])
    listing = asyncio.ensure_future(subject.store.list(subject.prefix))
    # Changes made while pages are read belong to the snapshot wholly or not at all.
    for key in (keys[0], keys[-1]):
        await subject.store.transact([], [Put(key, b"2")])
    snapshot = await listing
    assert [entry.key for entry in snapshot.entries] == keys
    assert all(entry.mod_revision <= snapshot.revision for entry in snapshot.entries)
    assert (snapshot.entries[0].value, snapshot.entries[-1].value) in {(b"1", b"1"), (b"2", b"1"), (b"2", b"2")}


async def test_watch_gives_every_later_change_in_order_and_nothing_earlier(subject: Subject) -> None:
    await subject.put("early")
    after = await subject.revision()
    key = subject.prefix + "a"
    async with aclosing(subject.store.watch(subject.prefix, after)) as batches:
        missed = await subject.put("a", b"1")
        (replayed,) = await take(batches, 1)
        assert replayed.entry is not None
        assert (replayed.key, replayed.entry.value, replayed.revision) == (key, b"1", missed)
        assert replayed.entry.create_revision == replayed.entry.mod_revision == missed
        await subject.put("a", b"2")
        deleted = (await subject.store.transact([], [Delete(key)])).revision
        events = await take(batches, 2)
    assert [event.entry.value if event.entry else None for event in events] == [b"2", None]
    assert (events[-1].key, events[-1].revision) == (key, deleted)


async def test_watch_sees_only_its_prefix(subject: Subject) -> None:
    after = await subject.revision()
    async with aclosing(subject.store.watch(subject.prefix + "a/", after)) as batches:
        for name in ("b", "a", "a0", "a/1", "a/"):
            await subject.put(name)
        events = await take(batches, 2)
    assert [event.key.removeprefix(subject.prefix) for event in events] == ["a/1", "a/"]


async def test_every_watch_sees_every_change(subject: Subject) -> None:
    after = await subject.revision()

    async def collect() -> list[Revision]:
        async with aclosing(subject.store.watch(subject.prefix, after)) as batches:
            return [event.revision for event in await take(batches, 50)]

    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(collect()) for _ in range(5)]
        written = [await subject.put("a") for _ in range(50)]
    assert all(watcher.result() == written for watcher in watchers)


async def test_watch_from_the_past_never_divides_a_revision(subject: Subject) -> None:
    after = await subject.revision()
    for _ in range(30):
        await subject.store.transact([], [Put(f"{subject.prefix}{number}", b"x" * 2000) for number in range(100)])
    last = None
    num_events = 0
    async with aclosing(subject.store.watch(subject.prefix, after)) as batches:
        while num_events < 3000:
            batch = await asyncio.wait_for(anext(batches), WAIT_S)
            num_events += len(batch.events)
            assert batch.events[0].revision != last
            last = batch.events[-1].revision
            assert batch.revision == last
    assert num_events == 3000


async def test_lease_ends_by_itself_and_watchers_are_told_while_a_renewed_one_stays(subject: Subject) -> None:
    dying, living = [await subject.store.grant_lease(2) for _ in range(2)]
    await subject.put("dying", lease=dying)
    after = await subject.put("living", lease=living)

    async def renew() -> None:
        while True:
            await subject.store.renew_lease(living)
            await asyncio.sleep(0.3)

    async with aclosing(subject.store.watch(subject.prefix, after)) as batches:
        renewing = asyncio.ensure_future(renew())
        events = await take(batches, 1)
        renewing.cancel()
    assert [(event.key, event.entry) for event in events] == [(subject.prefix + "dying", None)]
    snapshot = await subject.store.list(subject.prefix)
    assert [(entry.key, entry.lease) for entry in snapshot.entries] == [(subject.prefix + "living", living)]
    with pytest.raises(LeaseExpiredError):
        await subject.store.renew_lease(dying)


async def test_revoked_lease_takes_its_keys_along_at_one_revision(subject: Subject) -> None:
    lease = await subject.store.grant_lease(60)
    await subject.put("a", lease=lease)
    await subject.put("b", lease=lease)
    after = await subject.put("b")
    await subject.put("c", lease=lease)
    await subject.store.revoke_lease(lease)
    await subject.store.revoke_lease(lease)
    assert [entry.key for entry in (await subject.store.list(subject.prefix)).entries] == [subject.prefix + "b"]
    async with aclosing(subject.store.watch(subject.prefix, after)) as batches:
        events = await take(batches, 3)
    gone = [event for event in events if event.entry is None]
    assert sorted(event.key for event in gone) == [subject.prefix + "a", subject.prefix + "c"]
    assert len({event.revision for event in gone}) == 1


async def test_write_with_a_lost_lease_is_refused_if_its_guards_hold(subject: Subject) -> None:
    lease = await subject.store.grant_lease(60)
    await subject.store.revoke_lease(lease)
    key = subject.prefix + "a"
    with pytest.raises(LeaseExpiredError):
        await subject.store.transact([CreatedAt(key, NEVER)], [Put(key, b"", lease)])
    assert await subject.store.get(key) is None
    await subject.put("a")
    assert not (await subject.store.transact([CreatedAt(key, NEVER)], [Put(key, b"", lease)])).succeeded
    with pytest.raises(LeaseExpiredError):
        await subject.store.renew_lease(lease)


async def test_lease_without_time_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidRequestError, match="too short"):
        await subject.store.grant_lease(0)


async def test_watch_from_compacted_history_raises(subject: Subject) -> None:
    seen = await subject.put("a", b"1")
    await subject.store.transact([], [Delete(subject.prefix + "a")])
    compacted = await subject.put("b", b"1")
    await subject.compact(compacted)
    async with aclosing(subject.store.watch(subject.prefix, seen)) as batches:
        with pytest.raises(CompactedError) as raised:
            await take(batches, 1)
    assert raised.value.revision == compacted


async def test_watch_after_the_compacted_revision_goes_on(subject: Subject) -> None:
    compacted = await subject.put("a", b"1")
    await subject.compact(compacted)
    async with aclosing(subject.store.watch(subject.prefix, compacted)) as batches:
        later = await subject.put("a", b"2")
        (event,) = await take(batches, 1)
    assert event.revision == later


async def test_deletion_at_the_compacted_revision_is_not_lost_silently(subject: Subject) -> None:
    seen = await subject.put("a")
    deleted = (await subject.store.transact([], [Delete(subject.prefix + "a")])).revision
    await subject.compact(deleted)
    async with aclosing(subject.store.watch(subject.prefix, seen)) as batches:
        with pytest.raises(CompactedError):
            await take(batches, 1)


async def test_follow_gives_the_whole_at_once_and_after_every_change(subject: Subject) -> None:
    await subject.put("a", b"1")
    async with asyncio.timeout(WAIT_S), aclosing(follow(subject.store, subject.prefix)) as mirrors:
        assert {key: entry.value for key, entry in (await anext(mirrors)).items()} == {subject.prefix + "a": b"1"}
        await subject.store.transact([], [Put(subject.prefix + "b", b"2"), Delete(subject.prefix + "a")])
        mirror = await anext(mirrors)
        assert {key: entry.value for key, entry in mirror.items()} == {subject.prefix + "b": b"2"}
        assert mirror.revision == mirror[subject.prefix + "b"].mod_revision


async def test_close_ends_watches_and_refuses_calls(subject: Subject) -> None:
    after = await subject.put("a")
    watching = asyncio.ensure_future(take_all(subject.store.watch(subject.prefix, after)))
    await subject.put("b")
    await subject.store.close()
    assert await asyncio.wait_for(watching, WAIT_S) in ([], [subject.prefix + "b"])
    with pytest.raises(StoreClosedError):
        await subject.store.get(subject.prefix + "a")


async def take_all(batches: AsyncGenerator[EventBatch, None]) -> list[str]:
    return [event.key async for batch in batches for event in batch.events]


async def test_watch_can_be_cancelled(subject: Subject) -> None:
    watching = asyncio.ensure_future(take_all(subject.store.watch(subject.prefix, await subject.revision())))
    await subject.put("a")
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert await subject.store.get(subject.prefix + "a") is not None
