"""What happens around every request: its id, the limit of its body, metrics, and noticing that its client has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline_api_gateway.metrics import GatewayMetrics
from paceline_services.errors import PacelineError
from paceline_services.ids import make_request_id

T = TypeVar("T")

CLIENT_GONE_STATUS = 499
"""Status in metrics of a request whose client left before an answer began (nginx's number for it)."""


class ClientGoneError(PacelineError):
    """The client closed the connection before its answer was there; nobody reads this."""

    http_status = CLIENT_GONE_STATUS
    default_reason = "CLIENT_GONE"


class ConnectionGuard:
    """ASGI middleware that passes the client's disconnect through, which Starlette's own base class does not."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, max_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        status = CLIENT_GONE_STATUS
        received_bytes = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if max(received_bytes, _announced_bytes(headers)) > self._max_bytes:
                raise HTTPException(413, f"the request body is larger than {self._max_bytes} bytes: send less")
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # An answer brings its own; this is for errors and for what is no answer.
                request_id = headers.get("x-request-id") or make_request_id()
                MutableHeaders(scope=message).setdefault("x-request-id", request_id[:128])
            await send(message)

        try:
            await self._app(scope, receive_limited, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.requests.labels(route, str(status)).inc()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What work returns; when the client leaves first, work is cancelled and ClientGoneError raised.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _announced_bytes(headers: Headers) -> int:
    announced = headers.get("content-length", "0")
    return int(announced) if announced.isascii() and announced.isdigit() else 0
