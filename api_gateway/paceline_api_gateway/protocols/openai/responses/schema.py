"""Bodies of the Responses API. Input items and tools are read one by one in items and tools, so that errors name them.

Fields that nobody knows are ignored; those of OpenAI that would change the answer and cannot be honoured are refused in translate_request.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from paceline_services.errors import InvalidRequestError

BodyT = TypeVar("BodyT", bound="RequestBody")
Json = dict[str, Any]

MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 2**32 - 1
_MAX_PATH = 200
_BRANCH = re.compile(r"str|int|float|bool|dict|list|.*[\[\]].*")
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class RequestBody(BaseModel):
    """Base of what clients send: numbers must be JSON numbers of the right kind."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=(), populate_by_name=True
    )


class TextFormat(RequestBody):
    type: str
    name: str | None = Field(default=None, pattern=FUNCTION_NAME)
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(RequestBody):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(RequestBody):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(RequestBody):
    include_obfuscation: bool | None = None


class PromptBody(RequestBody):
    """What makes a prompt: the body of POST /v1/responses/input_tokens, and a part of that of POST /v1/responses."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    input: str | list[dict[str, JsonValue]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: str | dict[str, JsonValue] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponseRequest(PromptBody):
    """Body of POST /v1/responses."""

    background: bool | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_tool_calls: int | None = Field(None, ge=1, le=MAX_TOKENS)
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    top_p: float | None = Field(None, ge=0, le=1)
    user: str | None = None


def parse(kind: type[BodyT], value: object, where: str) -> BodyT:
    """The part of a body that lies at a path such as input[0]. Raises InvalidRequestError with the path of what is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = max(error.errors(), key=lambda one: len(one["loc"]))
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"] if not _is_branch(step)]
        path = f"{where}{''.join(steps)}"[:_MAX_PATH]
        raise InvalidRequestError(f"{path}: {fault['msg']}", param=path) from None


def check_numbers(value: object, where: str) -> None:
    """Raises InvalidRequestError for a whole number that few readers of JSON can hold; it would have to be shown again as it is."""
    try:
        orjson.dumps(value)
    except TypeError:
        raise InvalidRequestError(f"{where}: it has a number of more than 64 bits", param=where) from None


def _is_branch(step: int | str) -> bool:
    """Whether a step of a path names a branch of a union rather than a field."""
    return isinstance(step, str) and bool(_BRANCH.fullmatch(step))
