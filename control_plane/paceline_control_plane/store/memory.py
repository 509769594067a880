"""The store as an in-process twin of etcd, for tests and for a cluster that need not outlive its process.

Same semantics as etcd, kept honest by the contract suite that runs over both: one revision per transaction that changes something,
guards, leases that end by themselves, watches from any revision that was not compacted. One event loop, no threads.
"""

import asyncio
import itertools
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass

from paceline_control_plane.store.interface import (
    NO_LEASE,
    Change,
    CompactedError,
    CreatedAt,
    Delete,
    Entry,
    Event,
    EventBatch,
    Guard,
    LeaseExpiredError,
    LeaseId,
    Outcome,
    Put,
    Snapshot,
    StoreClosedError,
    check_changes,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Revision

_NEVER = Revision(0)


@dataclass(slots=True)
class _Lease:
    """ttl_s is what it was granted for; ends_at is a time of the store's clock."""

    ttl_s: int
    ends_at: float


class MemoryStore:
    """Implements Store. clock gives seconds that never go back; leases end by it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._revision = Revision(1)
        self._compacted = Revision(0)
        self._entries: dict[str, Entry] = {}
        self._history: list[EventBatch] = []
        self._leases: dict[LeaseId, _Lease] = {}
        self._lease_ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: set[asyncio.Event] = set()
        self._is_closed = False

    async def get(self, key: str) -> Entry | None:
        await self._begin()
        return self._entries.get(key)

    async def list(self, prefix: str) -> Snapshot:
        await self._begin()
        found = (self._entries[key] for key in sorted(self._entries) if key.startswith(prefix))
        return Snapshot(self._revision, tuple(found))

    async def transact(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Outcome:
        check_changes(changes)
        await self._begin()
        if not all(map(self._holds, guards)):
            return Outcome(succeeded=False, revision=self._revision)
        for change in changes:
            if isinstance(change, Put) and change.lease != NO_LEASE:
                self._live_lease(change.lease)
        self._apply(changes)
        return Outcome(succeeded=True, revision=self._revision)

    async def watch(self, prefix: str, after: Revision) -> AsyncGenerator[EventBatch, None]:
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while not self._is_closed:
                changed.clear()
                if max(after, 1) < self._compacted:
                    raise CompactedError(self._compacted)
                events, after = self._events(prefix, after), max(after, self._revision)
                if events:
                    yield EventBatch(events[-1].revision, events)
                else:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def grant_lease(self, ttl_s: int) -> LeaseId:
        await self._begin()
        if ttl_s < 1:
            raise InvalidRequestError(f"a lease of {ttl_s} seconds is too short: 1 is the least")
        lease = LeaseId(next(self._lease_ids))
        self._leases[lease] = _Lease(ttl_s, self._clock() + ttl_s)
        self._set_timer()
        return lease

    async def renew_lease(self, lease: LeaseId) -> None:
        await self._begin()
        held = self._live_lease(lease)
        held.ends_at = self._clock() + held.ttl_s

    async def revoke_lease(self, lease: LeaseId) -> None:
        await self._begin()
        self._end_leases([lease])

    async def close(self) -> None:
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        self._wake_watchers()

    def compact(self, revision: Revision) -> None:
        """Forget history up to and including revision; watches that still need it raise CompactedError."""
        if not self._compacted < revision <= self._revision:
            raise InvalidRequestError(
                f"revision {revision} cannot be compacted: it lies ahead, or is compacted already"
            )
        self._compacted = revision
        del self._history[: bisect_right(self._history, revision, key=_revision_of)]
        self._wake_watchers()

    def expire_leases(self) -> None:
        """End the leases that are due by the clock. Happens by itself on a timer; a test that turns its own clock may call it."""
        now = self._clock()
        self._end_leases([lease for lease, held in self._leases.items() if held.ends_at <= now])

    async def _begin(self) -> None:
        """Let others run, as a call over a network would; what follows in the caller happens at once."""
        await asyncio.sleep(0)
        if self._is_closed:
            raise StoreClosedError
        self.expire_leases()

    def _holds(self, guard: Guard) -> bool:
        entry = self._entries.get(guard.key)
        if entry is None:
            return guard.revision == _NEVER
        return guard.revision == (entry.create_revision if isinstance(guard, CreatedAt) else entry.mod_revision)

    def _live_lease(self, lease: LeaseId) -> _Lease:
        held = self._leases.get(lease)
        if held is None:
            raise LeaseExpiredError(f"lease {lease} ran out or was revoked: its keys are gone, ask for a new one")
        return held

    def _apply(self, changes: Iterable[Change]) -> None:
        """Make the changes at the next revision; deletions of keys that do not exist change nothing."""
        effective = [change for change in changes if isinstance(change, Put) or change.key in self._entries]
        if not effective:
            return
        self._revision = Revision(self._revision + 1)
        events = tuple(self._change(change) for change in effective)
        self._history.append(EventBatch(self._revision, events))
        self._wake_watchers()

    def _change(self, change: Change) -> Event:
        if isinstance(change, Delete):
            del self._entries[change.key]
            return Event(change.key, None, self._revision)
        before = self._entries.get(change.key)
        created = before.create_revision if before else self._revision
        entry = Entry(change.key, change.value, created, self._revision, change.lease)
        self._entries[change.key] = entry
        return Event(change.key, entry, self._revision)

    def _end_leases(self, leases: Iterable[LeaseId]) -> None:
        for lease in leases:
            if self._leases.pop(lease, None) is not None:
                self._apply([Delete(entry.key) for entry in tuple(self._entries.values()) if entry.lease == lease])
        self._set_timer()

    def _set_timer(self) -> None:
        """Wake up when the next lease is due, so that watchers learn of its end without anyone calling."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._leases and not self._is_closed:
            left_s = min(held.ends_at for held in self._leases.values()) - self._clock()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self.expire_leases)

    def _events(self, prefix: str, after: Revision) -> tuple[Event, ...]:
        later = self._history[bisect_right(self._history, after, key=_revision_of) :]
        return tuple(event for batch in later for event in batch.events if event.key.startswith(prefix))

    def _wake_watchers(self) -> None:
        for changed in self._watchers:
            changed.set()


def _revision_of(batch: EventBatch) -> Revision:
    return batch.revision
