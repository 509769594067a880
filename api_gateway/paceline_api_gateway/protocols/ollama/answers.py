"""What Ollama's API answers, for the OpenAPI document: nothing here is used to make an answer, which would cost time for each."""

from typing import Any

from pydantic import BaseModel, Field

from paceline_api_gateway.openapi import show_examples

Json = dict[str, Any]


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


EXAMPLES: dict[str, Json] = {
    "chat": {
        "model": "demo",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "options": {"temperature": 0, "num_predict": 64},
        "stream": False,
    },
    "generate": {"model": "demo", "prompt": "Why is the sky blue?", "stream": False},
    "pull": {"model": "hf.co/owner/name", "stream": False},
    "show": {"model": "demo"},
    "delete": {"model": "demo"},
}
"""A body for each path that takes one."""
_FAULTS = {
    400: (
        "A field cannot be used; the text begins with its path",
        "options.temperature: Input should be less than or equal to 2",
    ),
    404: ("The model or path does not exist", "model 'other' not found. Models: demo:latest"),
    408: ("The body came too slowly", "the request body did not come in time: send it faster"),
    413: ("The body is too large", "the request body is too large: send less"),
    415: ("The body is no JSON by its headers", "a body of this type is not read: send JSON"),
    429: ("Too many requests; Retry-After says when to come back", "8 requests run and 64 wait: try again later"),
    500: ("A defect", "the gateway failed by a defect; its log has the traceback"),
    501: ("This cannot be done here", "models have no second names here"),
    503: ("The model is not ready or cannot run; Retry-After says when to come back", "the model is not ready yet"),
    504: ("It took too long", "the request took too long: it was generating"),
}
"""What a status means, and an example of its text."""
READING = (400, 404, 408, 413, 415, 500, 503)
REFUSING = (400, 408, 413, 415, 500, 501)
_ANSWERING = (400, 404, 408, 413, 415, 429, 500, 503, 504)
_TEXT = {"type": "string"}
_ERROR_SCHEMA: Json = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_HEAD = '{"model":"demo","created_at":"2026-01-01T00:00:00.000000000Z",'
_END = (
    '"done":true,"done_reason":"stop","total_duration":100000000,"load_duration":1,"prompt_eval_count":7,'
    '"prompt_eval_duration":50000000,"eval_count":2,"eval_duration":50000000}\n'
)
_PULL_LINES = '{"status":"pulling manifest"}\n{"status":"success"}\n'

Responses = dict[int | str, Json]


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
    whole: Json = {"model": model}
    if lines is not None:
        whole["content"] = {"application/x-ndjson": {"schema": _TEXT, "example": lines}}
    return {200: whole, **describe_errors(*statuses)}


def describe_errors(*statuses: int) -> Responses:
    return {status: _describe_error(*_FAULTS[status]) for status in statuses}


def show_example(path: str) -> Json:
    """A body of a route, in the words of openapi_extra."""
    return show_examples(**{path: EXAMPLES[path]})


def _describe_error(meaning: str, text: str) -> Json:
    return {
        "description": meaning,
        "content": {"application/json": {"schema": _ERROR_SCHEMA, "example": {"error": text}}},
    }
