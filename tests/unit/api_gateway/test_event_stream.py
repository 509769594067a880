"""Streams that pause are kept alive by comments between events, never after the end."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Message, Scope

from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.serving import OpenAnswer
from paceline_services.domain.generation import GenerationEvent, GenerationStarted
from paceline_services.ids import RequestId

SCOPE: Scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
LONG_S = 1000.0


async def respond(
    events: AsyncGenerator[str, None], keep_alive_s: float, sent: list[Message], enough: asyncio.Event | None = None
) -> None:
    async def send(message: Message) -> None:
        sent.append(message)
        if enough is not None and len(sent) == 4:
            enough.set()

    async def receive() -> Message:
        raise AssertionError("nothing is to be received")

    async def answer() -> AsyncGenerator[GenerationEvent, None]:
        yield GenerationStarted(RequestId("r"), 1, 0)

    opened = OpenAnswer(answer(), keep_alive_s)
    await AnswerResponse(events, opened, {"X-Request-Id": "r"}, SERVER_SENT_EVENTS)(SCOPE, receive, send)


def read_bodies(sent: list[Message]) -> list[bytes]:
    return [message["body"] for message in sent[1:]]


async def test_comments_come_while_nothing_else_does() -> None:
    sent, enough = list[Message](), asyncio.Event()

    async def pause() -> AsyncGenerator[str, None]:
        yield "data: 1\n\n"
        await asyncio.wait_for(enough.wait(), 10)
        yield "data: 2\n\n"

    await respond(pause(), 0.001, sent, enough)
    bodies = read_bodies(sent)
    assert bodies[0] == b"data: 1\n\n" and bodies[-1] == b"" and b"data: 2\n\n" in bodies
    assert bodies.count(SERVER_SENT_EVENTS.sign_of_life) >= 2
    assert [message.get("more_body") for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


async def test_stream_without_pauses_has_none() -> None:
    async def flow() -> AsyncGenerator[str, None]:
        for number in range(3):
            yield f"data: {number}\n\n"

    sent: list[Message] = []
    await respond(flow(), LONG_S, sent)
    assert read_bodies(sent) == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b""]
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream") and headers[b"cache-control"] == b"no-cache"
