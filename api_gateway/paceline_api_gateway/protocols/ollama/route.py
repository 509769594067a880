"""A route as Ollama's clients expect it: a body is JSON whatever its type is called, as curl's -d sends it."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

_TYPE = (b"content-type", b"application/json")


class OllamaRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_json(request: Request) -> Response:
            others = [header for header in request.scope["headers"] if header[0] != _TYPE[0]]
            return await answer(Request({**request.scope, "headers": [*others, _TYPE]}, request.receive))

        return answer_json
