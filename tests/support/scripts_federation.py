"""A backend that is no Paceline: a small HTTP server that answers with exact bytes, remembers what it was sent, and notices who leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class ScriptedBackend:
    """Answers GET /v1/models with its models, everything else with status, headers and pieces, each sent by itself.

    pause: waited for after the first piece. A status of 0: it never answers.
    """

    models: Sequence[str] = ()
    status: int = 200
    content_type: str = "application/json"
    pieces: Sequence[bytes] = (b'{"from": "backend"}',)
    pause: asyncio.Event | None = None
    models_body: bytes | None = None
    address: str = ""
    received: list[Received] = field(default_factory=list)
    looks: list[Received] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["ScriptedBackend"]:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read_request(reader)
            if request.method == "GET":
                self.looks.append(request)
                await self._send(writer, 200, "application/json", [self._list_models()])
            else:
                self.received.append(request)
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.status:
            await reader.read(1)
            self.left.set()
            return
        if self.pause is None:
            await self._send(writer, self.status, self.content_type, self.pieces)
            return
        _write_head(writer, self.status, self.content_type)
        _write_piece(writer, self.pieces[0])
        await writer.drain()
        go_on, gone = asyncio.ensure_future(self.pause.wait()), asyncio.ensure_future(reader.read(1))
        await asyncio.wait({go_on, gone}, return_when=asyncio.FIRST_COMPLETED)
        go_on.cancel()
        if gone.done():
            self.left.set()
            return
        gone.cancel()
        for piece in (*self.pieces[1:], b""):
            _write_piece(writer, piece)
        await writer.drain()

    async def _send(self, writer: asyncio.StreamWriter, status: int, kind: str, pieces: Sequence[bytes]) -> None:
        _write_head(writer, status, kind)
        for piece in (*pieces, b""):
            _write_piece(writer, piece)
            await writer.drain()

    def _list_models(self) -> bytes:
        if self.models_body is not None:
            return self.models_body
        return json.dumps(
            {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        ).encode()


def _write_head(writer: asyncio.StreamWriter, status: int, kind: str) -> None:
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Type: {kind}", "X-Backend: yes", "Transfer-Encoding: chunked"]
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())


def _write_piece(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """One chunk; an empty one is the last."""
    writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)
