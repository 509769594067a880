"""Errors in OpenAI's form."""

from typing import Any

from paceline_api_gateway.faults import Fault

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "MODEL_NOT_FOUND": "model_not_found",
    "INSTANCE_NOT_FOUND": "instance_not_found",
    "KV_CACHE_TOO_SMALL": "context_length_exceeded",
    "INVALID_FUNCTION_PARAMETERS": "invalid_function_parameters",
    "NOT_IMPLEMENTED": "not_implemented",
}
_PARAMS = {"INVALID_OUTPUT_FORMAT": "response_format", "TOOL_CHOICE_NOT_ENFORCEABLE": "tool_choice"}
"""What a head refuses without knowing how its field is called here."""


def write_fault(fault: Fault) -> dict[str, Any]:
    kind = _KINDS.get(fault.status, "invalid_request_error" if fault.status < 500 else "server_error")
    code = _CODES.get(fault.reason) or ("rate_limit_exceeded" if fault.status == 429 else None)
    param = fault.param or _PARAMS.get(fault.reason)
    return {"error": {"message": fault.message, "type": kind, "param": param, "code": code}}
