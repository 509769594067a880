"""Bodies that come slowly are held together within a bound, and cost nothing once they are whole or given up."""

import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from paceline_api_gateway.bodies import BodyLimits
from paceline_api_gateway.connection import BodyReader, ClientGoneError
from paceline_api_gateway.faults import RefusedError

LIMITS = BodyLimits(max_bytes=100, timeout_s=10, max_held_bytes=150)
HEADERS = Headers({"content-type": "application/json"})


def part(text: str, *, more: bool) -> Message:
    return {"type": "http.request", "body": text.encode(), "more_body": more}


async def test_bodies_beyond_the_bound_are_refused_until_others_are_whole() -> None:
    reader = BodyReader(LIMITS, frozenset())
    messages, is_taken = asyncio.Queue[Message](), asyncio.Event()
    messages.put_nowait(part('"' + "x" * 90, more=True))

    async def receive() -> Message:
        if messages.empty():
            is_taken.set()
        return await messages.get()

    slow = asyncio.create_task(reader.read(HEADERS, receive))
    await asyncio.wait_for(is_taken.wait(), 5)

    other = asyncio.Queue[Message]()
    other.put_nowait(part('"' + "y" * 80, more=True))
    with pytest.raises(RefusedError) as caught:
        await reader.read(HEADERS, other.get)
    assert caught.value.fault.status == 503 and caught.value.fault.retry_after_s

    messages.put_nowait(part('"', more=False))
    assert len(await slow) == 92
    other.put_nowait(part('"' + "y" * 80, more=True))
    other.put_nowait(part('"', more=False))
    assert len(await reader.read(HEADERS, other.get)) == 82


async def test_bodies_of_clients_that_left_are_held_no_longer() -> None:
    reader = BodyReader(LIMITS, frozenset())
    for _ in range(5):
        messages = asyncio.Queue[Message]()
        messages.put_nowait(part('"' + "x" * 90, more=True))
        messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(ClientGoneError):
            await reader.read(HEADERS, messages.get)
