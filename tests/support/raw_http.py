"""HTTP by hand, for what no client library sends: halves of requests, headers without end, readers that do not read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class RawConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_response(self) -> RawResponse:
        """One response with a Content-Length, or none; fails when it does not come within LIMIT_S."""
        async with asyncio.timeout(LIMIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = (line.split(":", 1) for line in lines if line)
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return RawResponse(int(first.split()[1]), headers, body)

    async def read_to_end(self) -> bytes:
        """What comes until the other side closes; fails when it does not within LIMIT_S."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.read()


@asynccontextmanager
async def connect(url: str, receive_buffer_bytes: int = 1 << 16) -> AsyncIterator[RawConnection]:
    """A connection that is cut when the block ends."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=receive_buffer_bytes)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()


def write_request(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    """A whole request; headers by their names with underscores; their values replace those that are made here."""
    named = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    named |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
