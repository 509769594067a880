"""Responses at rest: an SQLite file in the gateway's home, used by one thread of its own, bounded in bytes and in age.

A response is kept with the items that it was made from, so it stands alone: neither the end of an earlier response of its conversation nor
that of the gateway changes what it was. Items are kept once, however many responses of a conversation share them. Everything belongs to a
client: whoever asks with another API key finds nothing.

Gateways that share a home share the file. Each holds a lock for as long as it lives: what a gateway had under way has failed once its lock
is free.
"""

import asyncio
import fcntl
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import orjson

from paceline_api_gateway.protocols.openai.responses.schema import Json
from paceline_services.errors import UnavailableError
from paceline_services.logs import get_logger

T = TypeVar("T")

_BUSY_TIMEOUT_S = 5.0
_UNDER_WAY = ("queued", "in_progress")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    client_id TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (client_id, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_by_age ON responses (created);
CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY AUTOINCREMENT, client_id TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS items_by_id ON items (client_id, id);
CREATE TABLE IF NOT EXISTS links (
    client_id TEXT NOT NULL, response_id TEXT NOT NULL, position INTEGER NOT NULL, item INTEGER NOT NULL, is_output INTEGER NOT NULL,
    PRIMARY KEY (client_id, response_id, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS links_by_item ON links (item);
"""
_DIED = {
    "code": "server_error",
    "message": "the gateway ended while it generated this response: send the request again",
}


@dataclass(frozen=True, slots=True)
class Item:
    """number: its place in the file; None for one that is not there yet."""

    body: Json
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A response and what it was made from, its conversation's earlier items included."""

    response: Json
    inputs: tuple[Item, ...]
    outputs: tuple[Item, ...] = ()

    @property
    def is_under_way(self) -> bool:
        return self.response["status"] in _UNDER_WAY


@dataclass(frozen=True, slots=True)
class Bounds:
    """See GatewaySettings."""

    max_bytes: int
    max_age_s: float


class ResponseStore:
    """Every method may raise UnavailableError, when the file cannot be used. The file is opened by the first that needs it."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        self._folder = folder
        self._bounds = bounds
        self._owner = secrets.token_hex(8)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")
        self._connection: sqlite3.Connection | None = None
        self._lock: IO[bytes] | None = None

    @property
    def is_on(self) -> bool:
        return self._bounds.max_bytes > 0

    async def put(self, client_id: str, stored: Stored) -> None:
        """Keep a response; one with the same id is replaced. Those that are too old, or too much, are given up."""
        await self._run(lambda file: self._put(file, client_id, stored))

    async def get(self, client_id: str, response_id: str) -> Stored | None:
        """None where there is none, or none of this client."""
        return await self._run(lambda file: self._get(file, client_id, response_id))

    async def find_items(self, client_id: str, item_ids: Sequence[str]) -> dict[str, Item]:
        """Those of the client's items that are there, by id."""
        return await self._run(lambda file: _find_items(file, client_id, item_ids))

    async def delete(self, client_id: str, response_id: str) -> bool:
        """Whether there was one."""
        return await self._run(lambda file: _delete(file, client_id, response_id))

    async def close(self) -> None:
        """Nothing is used afterwards."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not self.is_on:
            raise UnavailableError("no responses are stored here (stored_responses_max_bytes is 0)", reason="STORE_OFF")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        except (sqlite3.Error, OSError) as error:
            get_logger().error("response_store_failed", folder=str(self._folder), error=str(error))
            message = (
                f"the store of responses cannot be used ({error}): send the request with store false, or try later"
            )
            raise UnavailableError(message, reason="STORE_FAILED") from error

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._open()
        return work(self._connection)

    def _open(self) -> sqlite3.Connection:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._hold_lock()
        path = self._folder / "responses.sqlite3"
        path.touch(mode=0o600)
        file = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA auto_vacuum = INCREMENTAL")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.executescript(_SCHEMA)
        with _transaction(file):
            self._end_abandoned(file)
            self._make_room(file)
        return file

    def _hold_lock(self) -> None:
        self._lock = self._lock_path(self._owner).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _lock_path(self, owner: str) -> Path:
        return self._folder / f"gateway-{owner}.lock"

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._lock is not None:
            self._lock_path(self._owner).unlink(missing_ok=True)
            self._lock.close()

    def _put(self, file: sqlite3.Connection, client_id: str, stored: Stored) -> None:
        response = stored.response
        body = orjson.dumps({name: value for name, value in response.items() if name != "output"})
        items = [(item, False) for item in stored.inputs] + [(Item(body), True) for body in response["output"]]
        with _transaction(file):
            kept = _list_item_numbers(file, client_id, response["id"])
            numbers = [(_keep_item(file, client_id, item), is_output) for item, is_output in items]
            file.execute("DELETE FROM links WHERE client_id = ? AND response_id = ?", (client_id, response["id"]))
            file.executemany(
                "INSERT INTO links VALUES (?, ?, ?, ?, ?)",
                [(client_id, response["id"], place, *one) for place, one in enumerate(numbers)],
            )
            file.execute(
                "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)",
                (client_id, response["id"], self._owner, response["status"], time.time(), body),
            )
            _drop_unused(file, kept)
            self._make_room(file)

    def _get(self, file: sqlite3.Connection, client_id: str, response_id: str) -> Stored | None:
        found = _read(file, client_id, response_id)
        if found is None or not found[1].is_under_way or self._is_alive(found[0]):
            return found[1] if found else None
        with _transaction(file):
            self._end_abandoned(file)
        found = _read(file, client_id, response_id)
        return found[1] if found else None

    def _end_abandoned(self, file: sqlite3.Connection) -> None:
        """What a gateway that is gone had under way has failed."""
        marks = ", ".join("?" * len(_UNDER_WAY))
        rows = file.execute(f"SELECT client_id, id, owner, body FROM responses WHERE status IN ({marks})", _UNDER_WAY)
        for client_id, response_id, owner, body in rows.fetchall():
            if self._is_alive(owner):
                continue
            failed = orjson.dumps(orjson.loads(body) | {"status": "failed", "error": _DIED})
            file.execute(
                "UPDATE responses SET status = 'failed', body = ? WHERE client_id = ? AND id = ?",
                (failed, client_id, response_id),
            )

    def _is_alive(self, owner: str) -> bool:
        """Whether the gateway still holds its lock."""
        if owner == self._owner:
            return True
        path = self._lock_path(owner)
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False

    def _make_room(self, file: sqlite3.Connection) -> None:
        """Give up responses that are too old, and the oldest until the rest is small enough."""
        oldest = time.time() - self._bounds.max_age_s
        for client_id, response_id in file.execute(
            "SELECT client_id, id FROM responses WHERE created < ?", (oldest,)
        ).fetchall():
            _drop(file, client_id, response_id)
        while _used_bytes(file) > self._bounds.max_bytes:
            row = file.execute("SELECT client_id, id FROM responses ORDER BY created LIMIT 1").fetchone()
            if row is None:
                break
            _drop(file, *row)
        file.execute("PRAGMA incremental_vacuum")


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


def _read(file: sqlite3.Connection, client_id: str, response_id: str) -> tuple[str, Stored] | None:
    """The response, and who had it."""
    row = file.execute(
        "SELECT owner, body FROM responses WHERE client_id = ? AND id = ?", (client_id, response_id)
    ).fetchone()
    if row is None:
        return None
    rows = file.execute(
        "SELECT items.number, items.body, is_output FROM links JOIN items ON items.number = links.item"
        " WHERE links.client_id = ? AND response_id = ? ORDER BY position",
        (client_id, response_id),
    ).fetchall()
    inputs = tuple(Item(orjson.loads(body), number) for number, body, is_output in rows if not is_output)
    outputs = tuple(Item(orjson.loads(body), number) for number, body, is_output in rows if is_output)
    owner, body = row
    return owner, Stored(orjson.loads(body) | {"output": [item.body for item in outputs]}, inputs, outputs)


def _find_items(file: sqlite3.Connection, client_id: str, item_ids: Sequence[str]) -> dict[str, Item]:
    found = {}
    for item_id in dict.fromkeys(item_ids):
        row = file.execute(
            "SELECT body, number FROM items WHERE client_id = ? AND id = ? ORDER BY number DESC LIMIT 1",
            (client_id, item_id),
        ).fetchone()
        if row is not None:
            found[item_id] = Item(orjson.loads(row[0]), row[1])
    return found


def _keep_item(file: sqlite3.Connection, client_id: str, item: Item) -> int:
    """Its number. One that had a number gets it again if it is gone since; numbers are never another item's."""
    cursor = file.execute(
        "INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?)",
        (item.number, client_id, item.body["id"], orjson.dumps(item.body)),
    )
    if item.number is not None:
        return item.number
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _delete(file: sqlite3.Connection, client_id: str, response_id: str) -> bool:
    with _transaction(file):
        was_there = _drop(file, client_id, response_id)
        file.execute("PRAGMA incremental_vacuum")
    return was_there


def _drop(file: sqlite3.Connection, client_id: str, response_id: str) -> bool:
    numbers = _list_item_numbers(file, client_id, response_id)
    file.execute("DELETE FROM links WHERE client_id = ? AND response_id = ?", (client_id, response_id))
    _drop_unused(file, numbers)
    return bool(file.execute("DELETE FROM responses WHERE client_id = ? AND id = ?", (client_id, response_id)).rowcount)


def _list_item_numbers(file: sqlite3.Connection, client_id: str, response_id: str) -> list[int]:
    rows = file.execute("SELECT item FROM links WHERE client_id = ? AND response_id = ?", (client_id, response_id))
    return [number for (number,) in rows.fetchall()]


def _drop_unused(file: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Items that no response was made from, or made, any more."""
    file.executemany(
        "DELETE FROM items WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM links WHERE item = ?1)",
        [(number,) for number in dict.fromkeys(numbers)],
    )


def _used_bytes(file: sqlite3.Connection) -> int:
    def read(name: str) -> int:
        return int(file.execute(f"PRAGMA {name}").fetchone()[0])

    return (read("page_count") - read("freelist_count")) * read("page_size")
