"""A route as Claude's clients expect it: every answer names its request in the header request-id, and every error in its body too."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.protocols.anthropic.errors import write_fault
from paceline_services.ids import make_request_id

REQUEST_ID_HEADER = "request-id"
VERSION_HEADER = b"anthropic-version"


class ClaudeRoute(APIRoute):
    """request.state.request_id is the request's name, where its endpoint has given it one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_named(request: Request) -> Response:
            try:
                response = await answer(request)
            except Exception as error:
                response = await _answer_error(request, error)
            response.headers.setdefault(REQUEST_ID_HEADER, _name_of(request))
            return response

        return answer_named


class ClaudeOnlyRoute(ClaudeRoute):
    """A path that another protocol has too: it is Claude's where the request has Claude's header."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not any(name == VERSION_HEADER for name, _ in scope.get("headers", ())):
            return Match.NONE, {}
        return super().matches(scope)


async def _answer_error(request: Request, error: Exception) -> Response:
    """As the application answers it, and with the request's name. Defects are the application's to log."""
    writers = request.app.exception_handlers
    kind = next((kind for kind in type(error).__mro__ if kind in writers and kind is not Exception), None)
    if kind is None:
        raise error
    response: Response = await writers[kind](request, error)
    body = orjson.loads(response.body)
    if body.get("type") != "error":  # a path that is another protocol's too
        body = write_fault(Fault(response.status_code, body["error"]["message"]))
    body["request_id"] = _name_of(request)
    headers = {name: value for name, value in response.headers.items() if name == "retry-after"}
    return JSONResponse(body, response.status_code, headers)


def _name_of(request: Request) -> str:
    if not hasattr(request.state, "request_id"):
        request.state.request_id = request.headers.get("x-request-id", "")[:128] or make_request_id()
    name: str = request.state.request_id
    return name
