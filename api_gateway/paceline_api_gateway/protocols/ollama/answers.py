"""What Ollama's API answers, for the OpenAPI document: nothing here is used to make an answer, which would cost time for each."""

from typing import Any

from pydantic import BaseModel, Field


class OllamaError(BaseModel):
    error: str = Field(examples=["model 'nope' not found"])


class OllamaMetrics(BaseModel):
    """Only the last object has these. Durations are in nanoseconds."""

    done_reason: str | None = Field(None, examples=["stop"])
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaMessage(BaseModel):
    role: str = Field(examples=["assistant"])
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatAnswer(OllamaMetrics):
    model: str
    created_at: str
    message: OllamaMessage
    done: bool
    logprobs: list[dict[str, Any]] | None = None


class GenerateAnswer(OllamaMetrics):
    model: str
    created_at: str
    response: str
    thinking: str | None = None
    done: bool
    logprobs: list[dict[str, Any]] | None = None


class DetailsAnswer(BaseModel):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class TagAnswer(BaseModel):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: DetailsAnswer


class TagsAnswer(BaseModel):
    models: list[TagAnswer]


class RunningAnswer(BaseModel):
    name: str
    model: str
    size: int
    digest: str
    details: DetailsAnswer
    expires_at: str
    size_vram: int
    context_length: int


class RunningListAnswer(BaseModel):
    models: list[RunningAnswer]


class ShowAnswer(BaseModel):
    license: str
    modelfile: str
    parameters: str
    template: str
    details: DetailsAnswer
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class ProgressAnswer(BaseModel):
    status: str = Field(examples=["success"])
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


class VersionAnswer(BaseModel):
    version: str


_FAULTS = {
    400: "a field cannot be used: the text begins with its path",
    404: "model 'nope' not found",
    413: "the body is too large",
    429: "too many requests: come back after Retry-After",
    500: "a defect",
    501: "this cannot be done here",
    503: "the model is not ready or cannot run now: come back after Retry-After",
    504: "it took too long",
}
READING = (400, 404, 500, 503)
_ANSWERING = (400, 404, 413, 429, 500, 503, 504)
_HEAD = '{"model":"demo","created_at":"2026-01-01T00:00:00.000000000Z",'
_END = (
    '"done":true,"done_reason":"stop","total_duration":100000000,"load_duration":1,"prompt_eval_count":7,'
    '"prompt_eval_duration":50000000,"eval_count":2,"eval_duration":50000000}\n'
)
_PULL_LINES = '{"status":"pulling manifest"}\n{"status":"success"}\n'

Responses = dict[int | str, dict[str, Any]]


def describe_chat() -> Responses:
    """The answers of POST /api/chat."""
    texts = [f'{_HEAD}"message":{{"role":"assistant","content":"{text}"}},' for text in ("Hello", "")]
    return describe(ChatAnswer, *_ANSWERING, lines=f'{texts[0]}"done":false}}\n{texts[1]}{_END}')


def describe_generate() -> Responses:
    """The answers of POST /api/generate."""
    lines = f'{_HEAD}"response":"Hello","done":false}}\n{_HEAD}"response":"",{_END}'
    return describe(GenerateAnswer, *_ANSWERING, lines=lines)


def describe_pull() -> Responses:
    """The answers of POST /api/pull."""
    return describe(ProgressAnswer, *READING, lines=_PULL_LINES)


def describe(model: type[BaseModel], *statuses: int, lines: str | None = None) -> Responses:
    """For the responses of a route. lines: an example of its stream."""
    whole: dict[str, Any] = {"model": model}
    if lines is not None:
        whole["content"] = {"application/x-ndjson": {"schema": {"type": "string"}, "example": lines}}
    return {200: whole, **describe_errors(*statuses)}


def describe_errors(*statuses: int) -> Responses:
    return {
        status: {
            "model": OllamaError,
            "description": _FAULTS[status],
            "content": {"application/json": {"example": {"error": _FAULTS[status]}}},
        }
        for status in statuses
    }
