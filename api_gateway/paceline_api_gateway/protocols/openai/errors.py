"""Errors in OpenAI's form, and with the names that fields have there. Pure."""

import re
from typing import Any

from paceline_api_gateway.faults import Fault
from paceline_services.errors import InvalidRequestError, PacelineError

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "MODEL_NOT_FOUND": "model_not_found",
    "INSTANCE_NOT_FOUND": "instance_not_found",
    "KV_CACHE_TOO_SMALL": "context_length_exceeded",
    "INVALID_FUNCTION_PARAMETERS": "invalid_function_parameters",
    "UNSUPPORTED_PARAMETER": "unsupported_parameter",
    "UNSUPPORTED_VALUE": "unsupported_value",
    "NOT_IMPLEMENTED": "not_implemented",
}
_NAMES = (
    (re.compile(r"output_format\.json_schema"), "response_format"),
    (re.compile(r"output_format\.regex"), "structured_outputs.regex"),
    (re.compile(r"output_format"), "response_format"),
    (re.compile(r"tools\.(\d+)\.parameters"), r"tools[\1].function.parameters"),
    (re.compile(r"tools\b"), "tools"),
)
"""How fields of the canonical request are called here."""


def write_fault(fault: Fault) -> dict[str, Any]:
    kind = _KINDS.get(fault.status, "invalid_request_error" if fault.status < 500 else "server_error")
    code = _CODES.get(fault.reason) or ("rate_limit_exceeded" if fault.status == 429 else None)
    return {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": code}}


def rename_fields(error: PacelineError) -> PacelineError:
    """An error of a head about a field, as OpenAI's clients know it; any other error as it is."""
    path = error.facts.get("path", "")
    if not isinstance(error, InvalidRequestError) or "param" in error.facts:
        return error
    if error.reason == "TOOL_CHOICE_NOT_ENFORCEABLE":
        return InvalidRequestError(error.message, reason=error.reason, param="tool_choice")
    for pattern, name in _NAMES:
        if pattern.match(path):
            param = pattern.sub(name, path, count=1)
            return InvalidRequestError(error.message.replace(path, param), reason=error.reason, param=param)
    return error
