"""Leader election after etcd's own (client/v3/concurrency/election.go, reduced to one key): the first to make the key leads.

The key hangs on a lease; when its holder dies, it is gone after at most the lease's time, and whoever watches tries again. A holder
that could not renew for that long by its own clock stops leading by itself. What a leader does is not decided here.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from paceline_control_plane.store.interface import (
    CompactedError,
    CreatedAt,
    LeaseExpiredError,
    LeaseId,
    Put,
    Store,
    StoreUnavailableError,
)
from paceline_services.backoff import Backoff
from paceline_services.ids import Revision
from paceline_services.lifecycle import run_until
from paceline_services.logs import get_logger

_REVOKE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to change the cluster's state: the leader's key and the revision that made it."""

    replica_id: str
    key: str
    revision: Revision

    @property
    def guard(self) -> CreatedAt:
        """Holds only as long as this leadership does."""
        return CreatedAt(self.key, self.revision)


class Election:
    """One replica's candidacy."""

    def __init__(self, store: Store, key: str, replica_id: str, ttl_s: int) -> None:
        self._store = store
        self._key = key
        self._replica_id = replica_id
        self._ttl_s = ttl_s

    async def campaign(self, lead: Callable[[Leadership], Coroutine[Any, Any, None]]) -> None:
        """For ever: wait until nobody leads, try to become leader, run lead and cancel it as soon as leadership is lost.

        When lead returns, leadership is given up and stood for again. Cancelled, it gives up leadership at once.
        """
        failures = 0
        while True:
            try:
                await self._wait_for_vacancy()
                await self._stand(lead)
                failures = 0
            except (StoreUnavailableError, LeaseExpiredError, CompactedError) as error:
                failures += 1
                get_logger().warning("election_failed", replica_id=self._replica_id, error=str(error))
                await asyncio.sleep(Backoff(limit_s=2.0).pause_s(failures))

    async def _wait_for_vacancy(self) -> None:
        snapshot = await self._store.list(self._key)
        if not any(entry.key == self._key for entry in snapshot.entries):
            return
        async with aclosing(self._store.watch(self._key, snapshot.revision)) as batches:
            async for batch in batches:
                changes = [event for event in batch.events if event.key == self._key]
                if changes and changes[-1].entry is None:
                    return

    async def _stand(self, lead: Callable[[Leadership], Coroutine[Any, Any, None]]) -> None:
        valid_until = time.monotonic() + self._ttl_s
        lease = await self._store.grant_lease(self._ttl_s)
        try:
            revision = await self._make_key(lease)
            if revision is None:
                return
            get_logger().info("leadership_won", replica_id=self._replica_id, revision=revision)
            leadership = Leadership(self._replica_id, self._key, revision)
            await run_until(self._renew_until_lost(lease, valid_until), lead(leadership))
            get_logger().warning("leadership_ended", replica_id=self._replica_id, revision=revision)
        finally:
            await self._revoke(lease)

    async def _make_key(self, lease: LeaseId) -> Revision | None:
        """The revision that made the key; None when another replica was first."""
        put = Put(self._key, self._replica_id.encode(), lease)
        try:
            outcome = await self._store.transact([CreatedAt(self._key, Revision(0))], [put])
            return outcome.revision if outcome.succeeded else None
        except StoreUnavailableError:
            # The write may have arrived all the same: look.
            entry = await self._store.get(self._key)
            if entry is None or entry.lease != lease:
                raise
            return entry.create_revision

    async def _renew_until_lost(self, lease: LeaseId, valid_until: float) -> None:
        """Return as soon as the lease is gone, or may be gone by this machine's clock."""
        while (left_s := valid_until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, self._ttl_s / 3))
            started = time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, valid_until - started)):
                    await self._store.renew_lease(lease)
                valid_until = started + self._ttl_s
            except LeaseExpiredError:
                return
            except (StoreUnavailableError, TimeoutError) as error:
                get_logger().warning("leadership_not_renewed", replica_id=self._replica_id, error=str(error))

    async def _revoke(self, lease: LeaseId) -> None:
        try:
            async with asyncio.timeout(_REVOKE_TIMEOUT_S):
                await self._store.revoke_lease(lease)
        except (StoreUnavailableError, TimeoutError) as error:
            get_logger().info("lease_left_to_expire", replica_id=self._replica_id, error=str(error))
