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


def write_fault(fault: Fault) -> dict[str, Any]:
    kind = _KINDS.get(fault.status, "invalid_request_error" if fault.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": fault.message}}
