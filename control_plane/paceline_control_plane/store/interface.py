"""The store of the cluster's state: a small ordered map with revisions, guarded transactions, leases and watches.

Semantics are etcd's: every change has a revision that only grows; revisions are compared, never computed with (the one exception,
"watch what comes after this snapshot", is inside the implementations). Nothing here knows what the keys mean.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from paceline_services.errors import InvalidRequestError, PacelineError, UnavailableError
from paceline_services.ids import Revision

LeaseId = NewType("LeaseId", int)
NO_LEASE = LeaseId(0)
MAX_CHANGES = 128
"""Changes in one transaction: etcd's default limit (--max-txn-ops)."""


class StoreUnavailableError(UnavailableError):
    """No member of the store answered within the deadline."""

    default_reason = "STORE_UNAVAILABLE"


class StoreClosedError(StoreUnavailableError):
    """close() was called on the store."""

    def __init__(self) -> None:
        super().__init__("this store was closed: it is used after its end")


class CompactedError(PacelineError):
    """The wanted history is gone: list again. revision is the oldest that is still there."""

    def __init__(self, revision: Revision) -> None:
        super().__init__(f"history before revision {revision} was compacted")
        self.revision = revision


class LeaseExpiredError(PacelineError):
    """The lease ran out or was revoked; its keys are gone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value and the revisions that made and last changed it."""

    key: str
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    lease: LeaseId = NO_LEASE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix, by key, as of one revision."""

    revision: Revision
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: LeaseId = NO_LEASE


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class CreatedAt:
    """Guard: the key's create_revision is this one; Revision(0) means that the key does not exist."""

    key: str
    revision: Revision


@dataclass(frozen=True, slots=True)
class ModifiedAt:
    """Guard: the key's mod_revision is this one; Revision(0) means that the key does not exist."""

    key: str
    revision: Revision


Guard = CreatedAt | ModifiedAt
Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the guards held and the changes were made, and the store's revision afterwards (that of the changes, if made)."""

    succeeded: bool
    revision: Revision


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. entry is None for a deletion."""

    key: str
    entry: Entry | None
    revision: Revision


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Changes of one or more revisions, in order; a revision is never divided over two batches."""

    revision: Revision
    events: tuple[Event, ...]


def check_changes(changes: Sequence[Change]) -> None:
    """Raise InvalidRequestError for what no store can do at once: two changes of one key, no key, too many."""
    keys = [change.key for change in changes]
    if len(keys) > MAX_CHANGES:
        raise InvalidRequestError(f"{len(keys)} changes are more than the {MAX_CHANGES} that fit one transaction")
    if not all(keys) or len(set(keys)) < len(keys):
        raise InvalidRequestError("each change of a transaction must name a key of its own")


class Store(Protocol):
    """All methods raise StoreUnavailableError when no member answers in time, and may be used by many tasks at once."""

    async def get(self, key: str) -> Entry | None:
        """The entry of one key, read linearizably."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """Every entry whose key begins with prefix, ordered by key, read linearizably."""
        ...

    async def transact(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Outcome:
        """Make all changes at one revision if every guard holds, else none. At most one change per key.

        Not repeated by itself once it may have reached the store: after StoreUnavailableError the caller must look.
        Raises LeaseExpiredError when the guards hold but a lease is gone, InvalidRequestError for unusable changes.
        """
        ...

    def watch(self, prefix: str, after: Revision) -> AsyncGenerator[EventBatch, None]:
        """Every change under prefix with a revision later than after, in order, none lost, none twice, until the caller stops.

        Survives restarts and hung or lost members. Raises CompactedError when history after `after` is gone.
        Iterate it inside contextlib.aclosing, so that its connection is given back as soon as the iteration ends.
        """
        ...

    async def grant_lease(self, ttl_s: int) -> LeaseId:
        """A new lease that ends ttl_s seconds after its last renewal."""
        ...

    async def renew_lease(self, lease: LeaseId) -> None:
        """Renew once. Raises LeaseExpiredError when it is gone."""
        ...

    async def revoke_lease(self, lease: LeaseId) -> None:
        """End a lease and delete its keys; nothing happens when it is gone already."""
        ...

    async def close(self) -> None:
        """Give back connections; running watches end."""
        ...
