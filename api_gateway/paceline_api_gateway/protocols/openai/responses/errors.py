"""Errors of the Responses API: OpenAI's form, with the codes that its clients look for."""

from typing import Any

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.protocols.openai.errors import write_fault as write_openai_fault
from paceline_services.errors import InvalidRequestError, NotFoundError

_CODES = {
    "PREVIOUS_RESPONSE_NOT_FOUND": "previous_response_not_found",
    "UNKNOWN_PARAMETER": "unknown_parameter",
    "UNSUPPORTED_PARAMETER": "unsupported_parameter",
    "UNSUPPORTED_VALUE": "unsupported_value",
    "MISSING_PARAMETER": "missing_required_parameter",
    "INVALID_ENCRYPTED_CONTENT": "invalid_encrypted_content",
}
_FAILURE_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def write_fault(fault: Fault) -> dict[str, Any]:
    body = write_openai_fault(fault)
    if code := _CODES.get(fault.reason):
        body["error"]["code"] = code
    return body


def describe_failure(fault: Fault) -> dict[str, Any]:
    """The error of a response that failed after it had begun; OpenAI's types know few codes for it."""
    return {"code": _FAILURE_CODES.get(fault.status, "server_error"), "message": fault.message}


def unsupported_value(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}", reason="UNSUPPORTED_VALUE", param=param)


def unsupported_parameter(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} is not supported: {message}", reason="UNSUPPORTED_PARAMETER", param=param)


def missing_parameter(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="MISSING_PARAMETER", param=param)


def response_not_found(response_id: str) -> NotFoundError:
    return NotFoundError(
        f"Response with id {response_id[:80]!r} not found: it was deleted, has expired, belongs to another API key, was sent with store"
        " false, or lies on another gateway; each gateway keeps the responses that it gave itself",
        reason="RESPONSE_NOT_FOUND",
        param="response_id",
    )


def previous_not_found(response_id: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Previous response with id {response_id[:80]!r} not found: it was deleted, has expired, belongs to another API key, was sent"
        " with store false, or lies on another gateway; send the whole conversation as input instead",
        reason="PREVIOUS_RESPONSE_NOT_FOUND",
        param="previous_response_id",
    )
