"""What Claude's API answers, for the OpenAPI document: nothing here is used to make an answer, which would cost time for each."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.protocols.anthropic.errors import write_fault

Json = dict[str, Any]


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
MESSAGES_EXAMPLES: dict[str, Json] = {
    "text": {
        "model": "demo",
        "max_tokens": 1024,
        "system": "Answer in one sentence.",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    },
    "tools": {
        "model": "demo",
        "max_tokens": 1024,
        "stream": True,
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [
            {
                "name": "get_weather",
                "description": "The weather in a city, now",
                "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            }
        ],
    },
}
COUNT_EXAMPLES: dict[str, Json] = {"text": {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}}
_FAULTS = {
    400: "temperature: Input should be less than or equal to 1",
    404: "the model 'other' does not exist here. Models: demo",
    408: "the request body did not come in time: send it faster",
    413: "the request body is too large: send less",
    415: "a body of this type is not read: send JSON",
    429: "8 requests run and 64 wait: try again later",
    500: "the gateway failed by a defect; its log has the traceback",
    503: "the model is not ready yet",
    504: "the request took too long: it was generating",
}
_MEANINGS = {
    400: "A field cannot be used; the message begins with its path",
    404: "The model or path does not exist",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is no JSON by its headers",
    429: "Too many requests; Retry-After says when to come back",
    500: "A defect",
    503: "The model is not ready or cannot run; Retry-After says when to come back",
    504: "It took too long",
}
_TEXT = {"type": "string"}
_ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "required": ["type", "message"], "properties": {"type": _TEXT, "message": _TEXT}},
        "request_id": _TEXT,
    },
}


def describe_errors() -> dict[int | str, Json]:
    """For the responses of a route."""
    return {status: _describe_error(status) for status in _FAULTS}


def describe_message() -> dict[int | str, Json]:
    """The answers of POST /v1/messages, whole and streamed."""
    streamed = {"example": STREAM_EXAMPLE}  # no schema: one would speak of each event
    return {200: {"model": ClaudeMessage, "content": {"text/event-stream": streamed}}, **describe_errors()}


def _describe_error(status: int) -> Json:
    example = write_fault(Fault(status, _FAULTS[status]))
    content = {"application/json": {"schema": _ERROR_SCHEMA, "example": example}}
    return {"description": _MEANINGS[status], "content": content}
