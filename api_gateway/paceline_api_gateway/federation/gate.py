"""Stands before the application: requests for models of a backend go there, all others in; lists of models name those of backends too.

A request that came through this gateway before, or through too many, is refused: gateways that name each other would pass it on for ever.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import orjson
from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paceline_api_gateway.connection import ClientGoneError, until_gone
from paceline_api_gateway.faults import Fault, WriteFault, make_retry_header, to_fault
from paceline_api_gateway.federation.choice import ClusterModels
from paceline_api_gateway.federation.federation import Federation
from paceline_api_gateway.federation.forward import HOPS_HEADER, Passage
from paceline_api_gateway.federation.settings import BackendSettings
from paceline_services.errors import PacelineError

MODELS_PATH = "/v1/models"
PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
)
"""Where a POST names a model that a backend may have."""
MAX_HOPS = 4


class LoopError(PacelineError):
    """Gateways that name each other as backends."""

    http_status = 508
    default_reason = "LOOP"


class FederationGate:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        federation: Federation,
        read_cluster: Callable[[], ClusterModels],
        writers: Mapping[str, WriteFault],
    ) -> None:
        self._app = app
        self._federation = federation
        self._read_cluster = read_cluster
        self._writers = writers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._federation.backends:
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in PATHS:
            await self._route(scope, receive, send)
        elif scope["method"] == "GET" and (scope["path"] + "/").startswith(MODELS_PATH + "/"):
            await self._list(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await _read_body(request)
            backend = self._choose(body)
            if backend is None:
                await self._app(scope, _Replay(body, receive), send)
                return
            scope["route"] = SimpleNamespace(path=scope["path"])  # for metrics
            passage = Passage(request, body, self._add_hop(request.headers, backend))
            await until_gone(request, self._federation.forward(passage, backend, send))
        except ClientGoneError:
            return
        except HTTPException as error:
            await self._refuse(request, Fault(error.status_code, str(error.detail)), send)
        except PacelineError as error:
            await self._refuse(request, to_fault(error), send)

    def _choose(self, body: bytes) -> BackendSettings | None:
        model_id = _read_model(body)
        return self._federation.choose(model_id, self._read_cluster()) if model_id else None

    def _add_hop(self, headers: Headers, backend: BackendSettings) -> tuple[str, ...]:
        hops = tuple(hop.strip() for hop in headers.get(HOPS_HEADER, "").split(",") if hop.strip())
        if self._federation.gateway_id in hops or len(hops) >= MAX_HOPS:
            raise LoopError(
                f"the backend {backend.name!r} passes requests on to gateways that they came from: let one of them serve the model"
            )
        return (*hops, self._federation.gateway_id)

    async def _refuse(self, request: Request, fault: Fault, send: Send) -> None:
        prefix = max((one for one in self._writers if request.url.path.startswith(one)), key=len)
        response = JSONResponse(self._writers[prefix](fault), fault.status, make_retry_header(fault))
        await response(request.scope, request.receive, send)

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The cluster's list with the backends' models behind; for another gateway's look, the cluster's alone."""
        if HOPS_HEADER in Headers(scope=scope):
            await self._app(scope, receive, send)
            return
        models = self._federation.list_models(self._read_cluster())
        if scope["path"] == MODELS_PATH:
            await self._app(scope, receive, _Appending(send, [describe(*one) for one in models.items()]))
            return
        name = scope["path"].removeprefix(MODELS_PATH + "/")
        if name not in models:
            await self._app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=MODELS_PATH + "/{model_id}")
        await JSONResponse(describe(name, models[name]))(scope, receive, send)


def describe(model_id: str, backend_name: str) -> dict[str, Any]:
    """A backend's model as OpenAI shows models."""
    return {"id": model_id, "object": "model", "created": 0, "owned_by": backend_name}


class _Replay:
    """Receives a body that was read before, then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Appending:
    """Sends a list of models with more of them behind; what is no such list goes out as it is."""

    def __init__(self, send: Send, models: list[dict[str, Any]]) -> None:
        self._send = send
        self._models = models
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self._append()
        headers = [one for one in self._start["headers"] if one[0].lower() != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    def _append(self) -> bytes:
        if self._start["status"] != 200:
            return self._body
        listed = orjson.loads(self._body)
        listed["data"] += self._models
        return orjson.dumps(listed)


async def _read_body(request: Request) -> bytes:
    """The whole body; raises ClientGoneError when the client leaves before it ends."""
    parts: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client closed the connection")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _read_model(body: bytes) -> str | None:
    """The model that a body names; None where it names none, which the application explains."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    model = value.get("model") if isinstance(value, dict) else None
    return model if isinstance(model, str) else None
