"""What the store of responses keeps, for whom, how much and how long."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from paceline_api_gateway.protocols.openai.responses.store import Bounds, Item, ResponseStore, Stored
from paceline_services.errors import UnavailableError

AMPLE = Bounds(1 << 30, 3600.0)


def make_response(name: str, status: str = "completed", text: str = "Hello") -> dict[str, Any]:
    return {"id": name, "status": status, "background": True, "error": None, "output": [make_item(f"out-{name}", text)]}


def make_item(name: str, text: str = "Hi") -> dict[str, Any]:
    return {"id": name, "type": "message", "role": "user", "status": "completed", "content": text}


def make_stored(name: str, *inputs: Item, status: str = "completed", text: str = "Hello") -> Stored:
    return Stored(make_response(name, status, text), inputs or (Item(make_item(f"in-{name}")),))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(tmp_path, AMPLE)
    yield store
    await store.close()


def count_rows(folder: Path, table: str) -> int:
    file = sqlite3.connect(folder / "responses.sqlite3")
    try:
        return int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        file.close()


async def test_response_is_found_by_its_client_alone(store: ResponseStore) -> None:
    await store.put("ada", make_stored("r1"))
    found = await store.get("ada", "r1")
    assert found is not None and found.response == make_response("r1")
    assert [item.body["id"] for item in found.inputs] == ["in-r1"]
    assert await store.get("bob", "r1") is None
    assert await store.find_items("bob", ["in-r1"]) == {}
    assert not await store.delete("bob", "r1")


async def test_two_clients_may_have_the_same_id(store: ResponseStore) -> None:
    await store.put("ada", make_stored("r1", text="Ada's"))
    await store.put("bob", make_stored("r1", text="Bob's"))
    found = await store.get("ada", "r1")
    assert found is not None and found.response["output"][0]["content"] == "Ada's"


async def test_items_that_responses_share_are_kept_once_and_to_the_last(store: ResponseStore, tmp_path: Path) -> None:
    await store.put("ada", make_stored("r1"))
    first = await store.get("ada", "r1")
    assert first is not None
    await store.put("ada", make_stored("r2", *first.inputs, *first.outputs, Item(make_item("in-r2"))))
    assert count_rows(tmp_path, "items") == 4
    assert await store.delete("ada", "r1")
    second = await store.get("ada", "r2")
    assert second is not None and [item.body["id"] for item in second.inputs] == ["in-r1", "out-r1", "in-r2"]
    assert await store.delete("ada", "r2")
    assert count_rows(tmp_path, "items") == count_rows(tmp_path, "links") == 0


async def test_items_given_up_in_between_are_kept_again(store: ResponseStore) -> None:
    await store.put("ada", make_stored("r1"))
    first = await store.get("ada", "r1")
    assert first is not None
    await store.delete("ada", "r1")
    await store.put("ada", make_stored("other"))
    await store.put("ada", make_stored("r2", *first.inputs, *first.outputs))
    second = await store.get("ada", "r2")
    assert second is not None and [item.body["id"] for item in second.inputs] == ["in-r1", "out-r1"]


async def test_putting_a_response_again_replaces_it(store: ResponseStore, tmp_path: Path) -> None:
    await store.put("ada", make_stored("r1", status="queued"))
    await store.put("ada", make_stored("r1", text="Done"))
    found = await store.get("ada", "r1")
    assert found is not None and found.response["output"][0]["content"] == "Done"
    assert count_rows(tmp_path, "items") == 2


async def test_item_is_found_by_its_id(store: ResponseStore) -> None:
    await store.put("ada", make_stored("r1"))
    found = await store.find_items("ada", ["out-r1", "unknown"])
    assert {name: item.body["content"] for name, item in found.items()} == {"out-r1": "Hello"}


async def test_oldest_responses_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, Bounds(1 << 20, 3600.0))
    for number in range(40):
        await store.put("ada", make_stored(f"r{number}", text="x" * (64 << 10)))
    assert await store.get("ada", "r0") is None
    assert await store.get("ada", "r39") is not None
    await store.close()
    assert (tmp_path / "responses.sqlite3").stat().st_size < 2 << 20


async def test_responses_that_are_too_old_go(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, Bounds(1 << 30, 1e-6))
    await store.put("ada", make_stored("r1"))
    await store.put("ada", make_stored("r2"))
    assert await store.get("ada", "r1") is None
    await store.close()


async def test_responses_survive_the_store(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, AMPLE)
    await store.put("ada", make_stored("r1"))
    await store.close()
    store = ResponseStore(tmp_path, AMPLE)
    found = await store.get("ada", "r1")
    await store.close()
    assert found is not None and found.response == make_response("r1")


async def test_what_a_living_gateway_has_under_way_goes_on(tmp_path: Path) -> None:
    mine, other = ResponseStore(tmp_path, AMPLE), ResponseStore(tmp_path, AMPLE)
    await mine.put("ada", make_stored("r1", status="in_progress"))
    found = await other.get("ada", "r1")
    assert found is not None and found.is_under_way
    await mine.close()
    found = await other.get("ada", "r1")
    assert found is not None and found.response["status"] == "failed"
    assert "gateway ended" in found.response["error"]["message"]
    await other.close()


async def test_file_is_for_its_owner_only(store: ResponseStore, tmp_path: Path) -> None:
    await store.put("ada", make_stored("r1"))
    assert (tmp_path / "responses.sqlite3").stat().st_mode & 0o077 == 0


async def test_store_of_no_bytes_is_off(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "never", Bounds(0, 1.0))
    with pytest.raises(UnavailableError, match="stored_responses_max_bytes"):
        await store.put("ada", make_stored("r1"))
    await store.close()
    assert not (tmp_path / "never").exists()


async def test_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "responses.sqlite3").write_bytes(b"no database" * 1000)
    store = ResponseStore(tmp_path, AMPLE)
    with pytest.raises(UnavailableError, match="store of responses"):
        await store.put("ada", make_stored("r1"))
    await store.close()
