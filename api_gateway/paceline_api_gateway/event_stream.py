"""Responses that are streamed, with a sign of life while nothing comes.

The sign is something that clients skip, such as a comment among server-sent events. It tells them, and proxies on the way, that a stream
whose answer pauses, as while an instance comes back, is alive.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from paceline_api_gateway.serving import OpenAnswer


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a protocol streams. sign_of_life: sent after every pause; empty where a protocol has nothing that clients skip."""

    media_type: str
    sign_of_life: bytes


SERVER_SENT_EVENTS = StreamForm("text/event-stream", b": keep-alive\n\n")


class AnswerResponse(StreamingResponse):
    """Sends each text as it comes, which were made of an answer's events; closes the answer whatever happens."""

    def __init__(
        self, texts: AsyncGenerator[str, None], answer: OpenAnswer, headers: Mapping[str, str], form: StreamForm
    ) -> None:
        super().__init__(texts, headers={**headers, "Cache-Control": "no-cache"}, media_type=form.media_type)
        self._texts = texts
        self._answer = answer
        self._form = form

    async def stream_response(self, send: Send) -> None:
        pulse = _Pulse(send, self._answer.keep_alive_s, self._form.sign_of_life)
        try:
            await super().stream_response(pulse.send)
        finally:
            await pulse.stop()
            await self._texts.aclose()
            await self._answer.aclose()


class _Pulse:
    """Passes messages on, and knows when the last one went out. One task serves the whole stream: a timer for each token costs too much."""

    def __init__(self, send: Send, pause_s: float, sign: bytes) -> None:
        self._send = send
        self._pause_s = pause_s
        self._sign = sign
        self._loop = asyncio.get_running_loop()
        self._sent_time = self._loop.time()
        self._is_open = False
        self._beating = asyncio.create_task(self._beat())

    async def send(self, message: Message) -> None:
        self._is_open = message.get("more_body", True)  # set before it is sent: nothing may follow the last message
        await self._send(message)
        self._sent_time = self._loop.time()

    async def stop(self) -> None:
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._sent_time + self._pause_s - self._loop.time())
            if self._loop.time() - self._sent_time < self._pause_s:
                continue
            if self._is_open and self._sign:
                await self._send({"type": "http.response.body", "body": self._sign, "more_body": True})
            self._sent_time = self._loop.time()
