"""What Claude's API answers, for the OpenAPI document: nothing here is used to make an answer, which would cost time for each."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.protocols.anthropic.errors import write_fault


class ClaudeErrorDetail(BaseModel):
    type: str = Field(examples=["invalid_request_error"])
    message: str


class ClaudeErrorAnswer(BaseModel):
    """An error. request_id is also in the header request-id."""

    type: Literal["error"]
    error: ClaudeErrorDetail
    request_id: str | None = None


class ClaudeUsage(BaseModel):
    """input_tokens excludes what was read from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]


class ClaudeBlock(BaseModel):
    """text has text; thinking has thinking and signature; tool_use has id, name and input."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class ClaudeMessage(BaseModel):
    """A whole answer; with stream, what its events make."""

    id: str = Field(examples=["msg_0123456789abcdef01234567"])
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ClaudeBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: ClaudeUsage


class ClaudeCount(BaseModel):
    input_tokens: int


STREAM_EXAMPLE = (
    'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_...","type":"message","role":"assistant",'
    '"model":"demo","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":7,"output_tokens":0}}}\n\n'
    'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}\n\n'
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    '"usage":{"input_tokens":7,"output_tokens":1}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
_FAULTS = {
    400: "a field cannot be used: the message begins with its path",
    404: "there is no such model, or no such path",
    413: "the body is too large",
    429: "too many requests: come back after Retry-After",
    500: "a defect",
    503: "the model is not ready or cannot run now: come back after Retry-After",
    504: "it took too long",
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the responses of a route; without statuses, all there are."""
    return {status: _describe_error(status) for status in statuses or _FAULTS}


def describe_message() -> dict[int | str, dict[str, Any]]:
    """The answers of POST /v1/messages, whole and streamed."""
    streamed = {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}
    return {200: {"model": ClaudeMessage, "content": {"text/event-stream": streamed}}, **describe_errors()}


def _describe_error(status: int) -> dict[str, Any]:
    example = write_fault(Fault(status, _FAULTS[status])) | {"request_id": "req-0123456789abcdef"}
    return {
        "model": ClaudeErrorAnswer,
        "description": _FAULTS[status],
        "content": {"application/json": {"example": example}},
    }
