"""Clients that read slowly or leave: what a head computes for them stops, at once or within bounds."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from support.endless import WORD, Endless, stall, wait_in_queue
from support.head import (
    MODEL,
    Answer,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
    say_words,
)
from support.raw_http import connect, write_request

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"
STREAM = json.dumps(CHAT | {"stream": True}).encode()
WHOLE = json.dumps(CHAT).encode()
MOST_BYTES = 1 << 20
"""Of the text of an answer that nobody reads, on its way in buffers; a fifth of it was measured."""


@asynccontextmanager
async def serve(home: Path, head: ScriptedHead, **settings: str) -> AsyncIterator[GatewayProcess]:
    async with head.serve(), ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        async with run_gateway(control_plane.address, home, settings) as gateway:
            yield gateway


def open_unread(url: str) -> socket.socket:
    """A stream that was asked for and is not read, over a connection that keeps little."""
    address = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port))
    client.sendall(write_request(PATH, STREAM))
    return client


async def until_still(endless: Endless) -> int:
    """What the head has said when it says no more: nobody asks it to go on."""
    said = -1
    async with asyncio.timeout(30):
        while said != endless.num_said or not said:
            said = endless.num_said
            await asyncio.sleep(0.3)
    return said


async def test_client_that_does_not_read_stops_the_head(tmp_path: Path) -> None:
    endless = Endless()
    head = ScriptedHead(endless.answer)
    async with serve(tmp_path, head) as gateway:
        client = open_unread(gateway.url)
        assert await until_still(endless) * len(WORD) < MOST_BYTES
        assert not head.cancelled.is_set()
        client.setblocking(False)
        before = endless.num_said
        async with asyncio.timeout(20):
            while endless.num_said == before:  # it goes on where it was
                await asyncio.get_running_loop().sock_recv(client, 1 << 20)
        client.close()
        await asyncio.wait_for(head.cancelled.wait(), 10)


async def test_client_that_takes_nothing_is_given_up_and_others_are_not(tmp_path: Path) -> None:
    endless = Endless()
    head = ScriptedHead(endless.answer)
    async with serve(tmp_path, head, WRITE_TIMEOUT_S="1") as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        client = open_unread(gateway.url)
        await asyncio.wait_for(head.asked.wait(), 10)
        started = time.monotonic()
        head.answer = say_words
        assert (await http.post(PATH, json=CHAT)).status_code == 200
        await asyncio.wait_for(head.cancelled.wait(), 20)
        assert time.monotonic() - started < 10
        client.close()


@pytest.mark.parametrize(
    ("answer", "stream"), [(wait_in_queue, STREAM), (stall, STREAM), (stall, WHOLE), (wait_in_queue, WHOLE)]
)
async def test_client_that_leaves_ends_its_generation_at_once(tmp_path: Path, answer: Answer, stream: bytes) -> None:
    head = ScriptedHead(answer)
    async with serve(tmp_path, head) as gateway:
        async with connect(gateway.url) as connection:
            await connection.send(write_request(PATH, stream))
            await asyncio.wait_for(head.asked.wait(), 10)
            if stream == STREAM and answer is stall:
                await asyncio.wait_for(connection.reader.readuntil(b'"first"'), 10)
        left = time.monotonic()
        await asyncio.wait_for(head.cancelled.wait(), 10)
    assert time.monotonic() - left < 1.0  # some milliseconds on a machine that has nothing else to do


async def test_client_that_leaves_while_its_body_comes_costs_nothing(tmp_path: Path) -> None:
    head = ScriptedHead()
    async with serve(tmp_path, head) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        async with connect(gateway.url) as connection:
            await connection.send(write_request(PATH, WHOLE)[:-1])
        assert (await http.post(PATH, json=CHAT)).status_code == 200
        assert len(head.requests) == 1
        assert "Traceback" not in gateway.read_log() and "error" not in gateway.read_log()
