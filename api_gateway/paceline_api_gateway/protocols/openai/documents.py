"""What answers look like, for the OpenAPI document alone: answers are not checked against it as they go out, which would cost time."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.openapi import show_examples
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.wire import Json


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Tokens of the prompt whose KV cache was found rather than computed.")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    accepted_prediction_tokens: int | None = Field(
        None, description="Tokens guessed ahead that were right; where any were guessed."
    )
    rejected_prediction_tokens: int | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="A JSON object as text.")


class ToolCallAnswer(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None = Field(description="null where the message only calls tools.")
    refusal: None = None
    reasoning_content: str | None = Field(None, description="What the model thought before it answered.")
    tool_calls: list[ToolCallAnswer] | None = None
    function_call: CalledFunction | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobAnswer(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprobAnswer]
    refusal: None = None


FinishReasonName = Literal["stop", "length", "tool_calls", "function_call"]


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReasonName
    token_ids: list[int] | None = None


_CHAT_EXAMPLE: dict[str, JsonValue] = {
    "id": "chatcmpl-0a1b2c3d4e5f60718293a4b5",
    "object": "chat.completion",
    "created": 1763700000,
    "model": "smollm2-135m-instruct",
    "system_fingerprint": "fp_0a1b2c3d4e",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 31,
        "completion_tokens": 3,
        "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
}


class ChatCompletion(BaseModel):
    """A whole answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [_CHAT_EXAMPLE]})

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDeltaAnswer(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDeltaAnswer] | None = None
    function_call: FunctionDelta | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReasonName | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """One server-sent event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] | None = None


class Completion(BaseModel):
    """A whole answer, or one server-sent event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


Responses = dict[int | str, dict[str, Any]]


_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "description": "What is wrong and what to do."},
        "type": {"type": "string", "description": "invalid_request_error, rate_limit_error, server_error ..."},
        "param": _TEXT_OR_NULL | {"description": "The field at fault, as messages[0].role."},
        "code": _TEXT_OR_NULL | {"description": "context_length_exceeded, model_not_found ..."},
    },
    "required": ["message", "type", "param", "code"],
}
_ERROR_BODY = {"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}


def _document_error(description: str, fault: Fault) -> Responses:
    content = {"application/json": {"schema": _ERROR_BODY, "example": write_fault(fault)}}
    return {fault.status: {"description": description, "content": content}}


BAD_REQUEST = _document_error(
    "The request cannot be used; param names the field.",
    Fault(400, "temperature: Input should be at most 2", "temperature"),
)
NOT_FOUND = _document_error(
    "There is no such model.",
    Fault(404, "the model 'other' does not exist here. Models: demo", None, "MODEL_NOT_FOUND"),
)
DEFECT = _document_error("A defect.", Fault(500, "the gateway failed by a defect; its log has the traceback"))
NOT_IMPLEMENTED = _document_error("Not supported.", Fault(501, "embeddings are not supported", None, "NOT_IMPLEMENTED"))
ASKING_ERRORS = (
    BAD_REQUEST
    | NOT_FOUND
    | DEFECT
    | _document_error("The body is too large.", Fault(413, "the request body is larger than 16777216 bytes: send less"))
    | _document_error(
        "Too many requests; Retry-After says when to come back.", Fault(429, "64 requests wait: try again later")
    )
    | _document_error(
        "Not ready, or cannot run; Retry-After says when to come back.", Fault(503, "the model is not ready yet")
    )
    | _document_error("It took too long.", Fault(504, "the request took longer than 600 s"))
)


def describe_answer(whole: type[BaseModel], part: type[BaseModel]) -> Responses:
    """A whole answer, or a stream of events with a part each and [DONE] at the end."""
    events = {"schema": {"type": "string", "description": f"Events `data: {part.__name__}`, then `data: [DONE]`."}}
    return {200: {"model": whole, "description": "The answer.", "content": {"text/event-stream": events}}}


_MODEL: Json = {"model": "smollm2-135m-instruct"}
_WEATHER: Json = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_ASK_WEATHER: Json = _MODEL | {"messages": [{"role": "user", "content": "How warm is it in Oslo?"}]}
CHAT_BODIES = show_examples(
    whole=_MODEL | {"messages": [{"role": "user", "content": "Hello"}]},
    stream=_MODEL | {"messages": [{"role": "user", "content": "Hello"}], "stream": True},
    tools=_ASK_WEATHER | {"tools": [{"type": "function", "function": _WEATHER}]},
    form=_ASK_WEATHER
    | {
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "weather",
                "schema": {"type": "object", "properties": {"celsius": {"type": "number"}}},
            },
        }
    },
)
COMPLETION_BODIES = show_examples(
    whole=_MODEL | {"prompt": "Once upon a time", "max_tokens": 32}, several=_MODEL | {"prompt": ["One", "Two"], "n": 2}
)
EMBEDDING_BODIES = show_examples(text=_MODEL | {"input": "Hello"})
