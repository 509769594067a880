"""The HTTP application: routers, and every error in OpenAI's shape."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from paceline_api_gateway.admin.routes import make_router as make_admin_router
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.protocols.openai.routes import make_router as make_openai_router
from paceline_api_gateway.protocols.openai.translate import make_error, to_error
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.clients import ControlPlaneClient
from paceline_services.errors import PacelineError
from paceline_services.logs import get_logger

RETRY_AFTER_S = {429: "1", 503: "5"}


def make_app(
    client: ControlPlaneClient, table: RouteTable, dispatcher: Dispatcher, metrics: GatewayMetrics, max_bytes: int
) -> FastAPI:
    """Everything a gateway serves."""
    app = FastAPI(title="Paceline", docs_url="/docs", redoc_url=None)
    app.include_router(make_openai_router(dispatcher, table))
    app.include_router(make_admin_router(client, table, metrics))
    _answer_errors(app)

    @app.middleware("http")
    async def limit_and_count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > max_bytes:
            response: Response = JSONResponse(
                make_error(f"the request body is larger than {max_bytes} bytes", 413), 413
            )
        else:
            response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "unknown")
        metrics.requests.labels(route, str(response.status_code)).inc()
        return response

    return app


def _answer_errors(app: FastAPI) -> None:
    async def on_ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PacelineError)
        return _respond(to_error(error), error.http_status)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
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


def _respond(body: dict[str, Any], status: int) -> JSONResponse:
    headers = {"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else None
    return JSONResponse(body, status, headers)


def _spell(location: tuple[int | str, ...]) -> str:
    """A path as OpenAI spells it: messages[0].role."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in location
        if part not in {"body", "query", "path"}
    ]
    return "".join(parts).lstrip(".") or "body"
