"""Keeps a copy of everything under a prefix: list, watch from there, list again when history is gone.

What is decided here is only when to list and when to watch; what a store's connection survives is its own affair. A copy may lag
while the store cannot be reached, but never misses a change: it catches up, or is listed anew.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing

from paceline_control_plane.store.interface import (
    CompactedError,
    Entry,
    Event,
    Snapshot,
    Store,
    StoreClosedError,
    StoreUnavailableError,
)
from paceline_services.backoff import Backoff
from paceline_services.ids import Revision
from paceline_services.logs import get_logger


class Mirror(Mapping[str, Entry]):
    """Entries under a prefix by key, as of a revision. Never changes; every change makes a new one."""

    __slots__ = ("_entries", "revision")

    def __init__(self, revision: Revision, entries: Iterable[Entry]) -> None:
        self.revision = revision
        self._entries: dict[str, Entry] = {entry.key: entry for entry in entries}

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def changed_by(self, events: Iterable[Event], revision: Revision) -> "Mirror":
        """The mirror after events, which end with revision."""
        entries = dict(self._entries)
        for event in events:
            if event.entry is None:
                entries.pop(event.key, None)
            else:
                entries[event.key] = event.entry
        return Mirror(revision, entries.values())


async def follow(
    store: Store,
    prefix: str,
    pauses: Backoff = Backoff(),  # noqa: B008
    *,
    is_patient: bool = False,
) -> AsyncGenerator[Mirror, None]:
    """The entries under prefix at once, and again after every change, until the store is closed.

    Raises StoreUnavailableError when the very first list fails, unless told to be patient; from then on it waits for the store as long
    as it takes.
    """
    try:
        snapshot = await (_list_patiently(store, prefix, pauses) if is_patient else store.list(prefix))
    except StoreClosedError:
        if is_patient:
            return
        raise
    while True:
        mirror = Mirror(snapshot.revision, snapshot.entries)
        yield mirror
        try:
            async with aclosing(store.watch(prefix, snapshot.revision)) as batches:
                async for batch in batches:
                    mirror = mirror.changed_by(batch.events, batch.revision)
                    yield mirror
            return
        except CompactedError as error:
            get_logger().info("mirror_listed_again", prefix=prefix, revision=mirror.revision, oldest=error.revision)
        try:
            snapshot = await _list_patiently(store, prefix, pauses)
        except StoreClosedError:
            return


async def _list_patiently(store: Store, prefix: str, pauses: Backoff) -> Snapshot:
    failures = 0
    while True:
        try:
            return await store.list(prefix)
        except StoreClosedError:
            raise
        except StoreUnavailableError as error:
            failures += 1
            get_logger().warning("mirror_list_failed", prefix=prefix, failures=failures, error=str(error))
        await asyncio.sleep(pauses.pause_s(failures))
