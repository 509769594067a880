"""Errors in Claude's form."""

from typing import Any

from paceline_api_gateway.faults import Fault

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


THREAD_REASON = "THREAD_UNSUPPORTED"
"""Of a request that wants its conversation kept: clients that are told so send all of it instead."""


def write_fault(fault: Fault) -> dict[str, Any]:
    kind = _KINDS.get(fault.status, "invalid_request_error" if fault.status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": fault.message}
    if fault.reason == THREAD_REASON:
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": []}
    return {"type": "error", "error": error}
