"""The HTTP application: routers, and every error in OpenAI's shape."""

import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paceline_api_gateway.admin.routes import make_router as make_admin_router
from paceline_api_gateway.connection import ConnectionGuard
from paceline_api_gateway.generation.admission import read_retry_after
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.protocols.openai.routes import make_router as make_openai_router
from paceline_api_gateway.protocols.openai.translate import make_error, to_error
from paceline_api_gateway.routing.table import RouteTable
from paceline_api_gateway.settings import GatewaySettings
from paceline_services.clients import ControlPlaneClient
from paceline_services.errors import PacelineError
from paceline_services.logs import get_logger

_UNION_BRANCH = re.compile(r"str|int|.*[\[\]].*")
RETRY_AFTER_S = {429: 1, 503: 5}
"""Sent where whoever refuses says nothing better."""


def make_app(
    client: ControlPlaneClient,
    table: RouteTable,
    dispatcher: Dispatcher,
    metrics: GatewayMetrics,
    settings: GatewaySettings,
) -> FastAPI:
    """Everything a gateway serves."""
    app = FastAPI(title="Paceline", docs_url="/docs", redoc_url=None)
    app.include_router(make_openai_router(dispatcher, table, settings.keep_alive_s))
    app.include_router(make_admin_router(client, table, metrics))
    _answer_errors(app)

    app.add_middleware(ConnectionGuard, metrics=metrics, max_bytes=settings.max_body_bytes)
    return app


def _answer_errors(app: FastAPI) -> None:
    async def on_ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PacelineError)
        return _respond(to_error(error), error.http_status, read_retry_after(error))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fault = max(
            error.errors(), key=lambda one: len(one["loc"])
        )  # of a union's branches, the one that came furthest
        param = _spell(fault["loc"])
        if fault["type"] == "json_invalid":
            return _respond(make_error(f"the body is not valid JSON: {fault['ctx']['error']}", 400), 400)
        return _respond(make_error(f"{param}: {fault['msg']}", 400, param=param), 400)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = {
            404: f"there is no {request.url.path} here",
            405: f"{request.method} is not allowed on {request.url.path}",
        }
        return _respond(
            make_error(what.get(error.status_code, str(error.detail)), error.status_code), error.status_code
        )

    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        get_logger().error("request_failed", path=request.url.path, exc_info=error)
        return _respond(make_error("the gateway failed by a defect; its log has the traceback", 500), 500)

    app.add_exception_handler(PacelineError, on_ours)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_defect)


def _respond(body: dict[str, Any], status: int, retry_after_s: float | None = None) -> JSONResponse:
    if status not in RETRY_AFTER_S:
        return JSONResponse(body, status)
    seconds = RETRY_AFTER_S[status] if retry_after_s is None else max(1, math.ceil(retry_after_s))
    return JSONResponse(body, status, {"Retry-After": str(seconds)})


def _spell(location: tuple[int | str, ...]) -> str:
    """A path as OpenAI spells it: messages[0].role."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in location
        if isinstance(part, int) or not (part in {"body", "query", "path"} or _UNION_BRANCH.fullmatch(part))
    ]
    return "".join(parts).lstrip(".") or "body"
