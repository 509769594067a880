"""Responses as server-sent events, with comments while nothing comes.

A comment is a line that clients skip. It tells them, and proxies on the way, that a stream whose answer pauses, as while an instance comes
back, is alive.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

COMMENT = b": keep-alive\n\n"


class EventStreamResponse(StreamingResponse):
    """Sends each text as it comes; comments after every pause of keep_alive_s seconds."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], headers: Mapping[str, str], keep_alive_s: float) -> None:
        super().__init__(events, headers={**headers, "Cache-Control": "no-cache"})
        self._keep_alive_s = keep_alive_s

    async def stream_response(self, send: Send) -> None:
        pulse = _Pulse(send, self._keep_alive_s)
        try:
            await super().stream_response(pulse.send)
        finally:
            await pulse.stop()


class _Pulse:
    """Passes messages on, and knows when the last one went out. One task serves the whole stream: a timer for each token costs too much."""

    def __init__(self, send: Send, pause_s: float) -> None:
        self._send = send
        self._pause_s = pause_s
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
            if self._is_open:
                await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self._sent_time = self._loop.time()
