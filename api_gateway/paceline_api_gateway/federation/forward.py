"""Passes one request to a backend and its answer back, byte for byte: body, status, headers, and a stream piece by piece.

Left out on the way are the headers that belong to one connection, the client's credentials (the backend gets its own, or none), and what
this gateway says itself.
"""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Send

from paceline_api_gateway.federation.settings import BackendSettings
from paceline_services.errors import OverloadedError, PacelineError, TimeoutExpiredError, UnavailableError
from paceline_services.logs import get_logger

CONNECT_TIMEOUT_S = 5.0
HOPS_HEADER = "x-paceline-hops"
"""Gateways that a request came through, their ids separated by commas."""
_OF_ONE_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
_OF_THE_CLIENT = _OF_ONE_CONNECTION | {"host", "content-length", "authorization", "x-api-key", "cookie", HOPS_HEADER}
_OF_THE_BACKEND = _OF_ONE_CONNECTION | {"date", "server", "set-cookie"}
_CORS = "access-control-"


@dataclass(frozen=True, slots=True)
class Passage:
    """A request on its way."""

    request: Request
    body: bytes
    hops: tuple[str, ...]
    """This gateway's id is the last."""


class Forwarder:
    """Sends requests to backends."""

    def __init__(self, client: httpx.AsyncClient, requests: Counter) -> None:
        self._client = client
        self._requests = requests

    async def forward(
        self, passage: Passage, backend: BackendSettings, credentials: dict[str, str], send: Send
    ) -> None:
        """Send the backend's answer. Raises PacelineError when there is none; one that breaks off in the middle ends without its end."""
        start = time.monotonic()
        status = 0
        try:
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(self._open(passage, backend, credentials))
                status = response.status_code
                headers = list(_pick(response.headers.raw, _OF_THE_BACKEND))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                async for piece in response.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.TransportError as error:
            get_logger().warning("backend_broke_off", backend=backend.name, error=type(error).__name__)
        finally:
            self._requests.labels(backend.name, str(status or "none")).inc()
            get_logger().info(
                "request_forwarded",
                backend=backend.name,
                path=passage.request.url.path,
                status=status or None,
                duration_ms=round((time.monotonic() - start) * 1e3, 1),
            )

    @asynccontextmanager
    async def _open(
        self, passage: Passage, backend: BackendSettings, credentials: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        query = passage.request.url.query
        url = httpx.URL(backend.url + passage.request.url.path + (f"?{query}" if query else ""))
        request = httpx.Request(
            "POST",
            url,
            headers=make_headers(passage, credentials),
            content=passage.body,
            extensions={"timeout": make_timeout(backend.timeout_s).as_dict()},
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise explain(error, backend) from error
        try:
            yield response
        finally:
            await response.aclose()


def make_headers(passage: Passage, credentials: dict[str, str]) -> list[tuple[str, str]]:
    """What the backend is sent beside the body. Pure."""
    given: Headers = passage.request.headers
    headers = [(name, value) for name, value in given.items() if name not in _OF_THE_CLIENT]
    if "accept-encoding" not in given:
        headers.append(("accept-encoding", "identity"))
    return [*headers, *credentials.items(), (HOPS_HEADER, ",".join(passage.hops))]


def make_timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), pool=CONNECT_TIMEOUT_S)


def explain(error: httpx.TransportError, backend: BackendSettings) -> PacelineError:
    """What the client is to hear of a backend that did not answer. Pure."""
    who = f"the backend {backend.name!r}"
    match error:
        case httpx.PoolTimeout():
            return OverloadedError(f"too many requests are open to {who}: try again later", reason="BACKEND_BUSY")
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return UnavailableError(f"{who} cannot be reached: is it running?", reason="BACKEND_UNREACHABLE")
        case httpx.TimeoutException():
            return TimeoutExpiredError(
                f"{who} said nothing for {backend.timeout_s:g} s: try again later", reason="BACKEND_SILENT"
            )
    return UnavailableError(f"{who} broke off before it answered: try again", reason="BACKEND_BROKEN")


def _pick(headers: Iterable[tuple[bytes, bytes]], left_out: frozenset[str]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        lowered = name.decode("latin-1").lower()
        if lowered not in left_out and not lowered.startswith(_CORS):
            yield name, value
