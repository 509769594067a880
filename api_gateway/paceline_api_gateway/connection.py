"""What happens around every request: its id, its body, metrics, and noticing that its client has left."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline_api_gateway.bodies import BodyLimits, check_headers, read_json, too_large, too_late, too_many
from paceline_api_gateway.faults import FaultForms, RefusedError
from paceline_api_gateway.identity import parse_request_id
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_services.errors import PacelineError
from paceline_services.ids import make_request_id

T = TypeVar("T")

CLIENT_GONE_STATUS = 499
"""Status in metrics of a request whose client left before an answer began (nginx's number for it)."""
_JSON_HEADER = (b"content-type", b"application/json")


class ClientGoneError(PacelineError):
    """The client closed the connection before its answer was there; nobody reads this."""

    http_status = CLIENT_GONE_STATUS
    default_reason = "CLIENT_GONE"


class BodyReader:
    """Reads bodies whole, and refuses what no route is to see."""

    def __init__(self, limits: BodyLimits, origins: frozenset[str]) -> None:
        """origins: those of web pages that may call the API; "*" for all."""
        self._limits = limits
        self._origins = origins
        self._held_bytes = 0
        """Of all bodies that are not whole yet."""

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The body, JSON within all limits. Raises RefusedError, ClientGoneError."""
        is_trusted = "*" in self._origins or headers.get("origin", "") in self._origins
        check_headers(headers, self._limits, is_trusted_origin=is_trusted)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await self._gather(receive)
        except TimeoutError:
            raise RefusedError(too_late(self._limits)) from None
        return read_json(body, self._limits) if body else body

    async def _gather(self, receive: Receive) -> bytes:
        parts, size_bytes = list[bytes](), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError("the client closed the connection")
                part = message.get("body", b"")
                parts.append(part)
                size_bytes += len(part)
                self._held_bytes += len(part)
                if size_bytes > self._limits.max_bytes:
                    raise RefusedError(too_large(self._limits))
                if not message.get("more_body", False):
                    return b"".join(parts)
                if self._held_bytes > self._limits.max_held_bytes:
                    raise RefusedError(too_many())
        finally:
            self._held_bytes -= size_bytes


class ConnectionGuard:
    """ASGI middleware that passes the client's disconnect through, which Starlette's own base class does not.

    has_route: whether the application knows the scope's path and method; what it does not know it answers itself, whatever the body.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: GatewayMetrics,
        reader: BodyReader,
        forms: FaultForms,
        has_route: Callable[[Scope], bool],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._reader = reader
        self._forms = forms
        self._has_route = has_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        status = CLIENT_GONE_STATUS

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = parse_request_id(headers.get("x-request-id")) or make_request_id()
                MutableHeaders(scope=message).setdefault("x-request-id", request_id)
            await send(message)

        scope = self._find_head(scope)
        try:
            await self._pass_on(scope, headers, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.requests.labels(route, str(status)).inc()

    async def _pass_on(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if not _has_body(headers):
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            body = await self._reader.read(headers, receive)
        except ClientGoneError:
            return
        except RefusedError as error:
            if error.fault.status in _OF_THE_CONNECTION or self._has_route(scope):
                await self._refuse(error, scope, receive, send)
                return
        scope["headers"] = [*(pair for pair in scope["headers"] if pair[0] != b"content-type"), _JSON_HEADER]
        await self._app(scope, _replay(body, receive), send)

    async def _refuse(self, error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
        # What is left of a body that never ends is not waited for; of one that is too large it is read and dropped, as a client that
        # still sends would not read why.
        headers = {"Connection": "close"} if error.fault.status == 408 else None
        await self._forms.respond(scope["path"], error.fault, headers)(scope, receive, send)

    def _find_head(self, scope: Scope) -> Scope:
        """HEAD is answered as GET is, less the body, unless it has a route of its own."""
        scope = dict(scope)
        if scope["method"] == "HEAD" and not self._has_route(scope):
            scope["method"] = "GET"
        return scope


_OF_THE_CONNECTION = frozenset({408, 413, 503})
"""Statuses that say that a body was not read to its end."""


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


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then what comes after it."""
    is_told = False

    async def receive_on() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_on
