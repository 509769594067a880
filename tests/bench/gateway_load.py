"""Asks a gateway, or a head, for streams of tokens and notes little but when they came: it is to cost less than what it measures."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.system import UnavailableError
from paceline.generation.v1 import generation_pb2
from paceline_services.clients import request_to_proto
from paceline_services.domain.generation import Conversation, GenerateRequest, Limits, Message
from paceline_services.ids import ModelId
from paceline_services.rpc import open_channel
from support.head import MODEL

METHOD = "/paceline.generation.v1.GenerationService/Generate"
LIMIT_S = 300.0
_TOKEN, _END = b'"content":" ', b"0\r\n\r\n"
"""Of a token's event, wherever the parts that it comes in are cut; and of a whole answer."""


@dataclass(slots=True)
class Told:
    """Of one stream: seconds to its first token, and how many came."""

    first_token_s: float = 0.0
    num_tokens: int = 0


@dataclass
class HttpStream(asyncio.Protocol):
    """One request over a connection of its own, read without a parser: every token's event has the same beginning."""

    request: bytes
    told: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._sent = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        self.told.num_tokens += data.count(_TOKEN)
        if not self.told.first_token_s and self.told.num_tokens:
            self.told.first_token_s = time.perf_counter() - self._sent
        self._rest = data[-(len(_TOKEN) - 1) :] if not data.endswith(_END) else b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def stream_http(url: str, num_tokens: int, pause_ms: int = 0) -> Told:
    """One streamed chat; the connection is made before time counts. pause_ms: of the head before each token."""
    address = urlsplit(url)
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": num_tokens, "seed": pause_ms}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_connection(
        lambda: HttpStream(head.encode() + content), address.hostname, address.port
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            await stream.ended
    finally:
        transport.close()
    return stream.told


class DirectClient:
    """A head asked over gRPC, with events left as bytes: what gRPC itself costs."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._generate = self._channel.unary_stream(METHOD)

    async def stream(self, num_tokens: int) -> Told:
        conversation = Conversation((Message("user", "Hello"),))
        request = GenerateRequest(ModelId(MODEL), conversation=conversation, limits=Limits(max_tokens=num_tokens))
        content = request_to_proto(request).SerializeToString()
        told, sent = Told(), time.perf_counter()
        async for event in self._generate(content, timeout=LIMIT_S):
            if not told.first_token_s and generation_pb2.GenerateResponse.FromString(event).HasField("delta"):
                told.first_token_s = time.perf_counter() - sent
            told.num_tokens += 1
        told.num_tokens -= 3  # the first and the last two are no tokens
        return told

    async def close(self) -> None:
        await self._channel.close(None)


async def stream_together(url: str, num_streams: int, num_tokens: int, pause_ms: int = 0) -> float:
    """Seconds that so many streams at once take. Raises UnavailableError where one of them is not whole."""
    started = time.perf_counter()
    told = await asyncio.gather(*(stream_http(url, num_tokens, pause_ms) for _ in range(num_streams)))
    if any(one.num_tokens != num_tokens for one in told):
        raise UnavailableError(f"of {num_tokens} tokens a stream came {sorted({one.num_tokens for one in told})}")
    return time.perf_counter() - started
