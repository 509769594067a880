"""What goes wrong with an HTTP request, and who writes it: every path belongs to a protocol, which has a form of its own for it."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from paceline_api_gateway.generation.admission import read_retry_after
from paceline_services.errors import PacelineError
from paceline_services.logs import get_logger

RETRY_AFTER_S = {429: 1, 503: 5}
"""Sent where whoever refuses says nothing better."""
_UNION_BRANCH = re.compile(r"str|int|.*[\[\]].*")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a client is to hear. param: the part of its request that is at fault; reason: UPPER_SNAKE, where it is known."""

    status: int
    message: str
    param: str | None = None
    reason: str = ""
    retry_after_s: float | None = None


WriteFault = Callable[[Fault], dict[str, Any]]
"""A protocol's body for a fault."""


class RefusedError(Exception):
    """A request that is refused for its own sake, before anything of Paceline looks at it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class FaultForms:
    """Who writes the faults of which paths: the writer whose prefix is the longest that fits; there is one for ""."""

    writers: Mapping[str, WriteFault]

    def write(self, path: str, fault: Fault) -> dict[str, Any]:
        prefix = max((one for one in self.writers if path.startswith(one)), key=len)
        return self.writers[prefix](fault)

    def respond(self, path: str, fault: Fault, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(self.write(path, fault), fault.status, {**(headers or {}), **make_retry_header(fault)})


def to_fault(error: PacelineError) -> Fault:
    return Fault(error.http_status, error.message, error.facts.get("param"), error.reason, read_retry_after(error))


def answer_faults(app: FastAPI, writers: Mapping[str, WriteFault]) -> None:
    """Answer every error of a route in the form of its path; see FaultForms."""
    forms = FaultForms(writers)

    def respond(request: Request, fault: Fault, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return forms.respond(request.scope["path"], fault, headers)

    async def on_ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, PacelineError)
        return respond(request, to_fault(error))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, _explain_invalid(error))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = {
            404: f"there is no {request.scope['path']} here",
            405: f"{request.method} is not allowed on {request.scope['path']}",
        }
        return respond(request, Fault(error.status_code, what.get(error.status_code, str(error.detail))), error.headers)

    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        get_logger().error("request_failed", path=request.scope["path"], exc_info=error)
        return respond(request, Fault(500, "the gateway failed by a defect; its log has the traceback"))

    app.add_exception_handler(PacelineError, on_ours)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_defect)


def make_retry_header(fault: Fault) -> dict[str, str]:
    """Retry-After in whole seconds, where another try may help."""
    if fault.status not in RETRY_AFTER_S:
        return {}
    seconds = RETRY_AFTER_S[fault.status] if fault.retry_after_s is None else max(1, math.ceil(fault.retry_after_s))
    return {"Retry-After": str(seconds)}


def _explain_invalid(error: RequestValidationError) -> Fault:
    # Of a union's branches, the one that came furthest.
    fault = max(error.errors(), key=lambda one: len(one["loc"]))
    if fault["type"] == "json_invalid":
        return Fault(400, f"the body is not valid JSON: {fault['ctx']['error']}")
    param = _spell(fault["loc"])
    return Fault(400, f"{param}: {fault['msg']}", param)


def _spell(location: tuple[int | str, ...]) -> str:
    """A path as OpenAI spells it: messages[0].role."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in location
        if isinstance(part, int) or not (part in {"body", "query", "path"} or _UNION_BRANCH.fullmatch(part))
    ]
    return "".join(parts).lstrip(".") or "body"
