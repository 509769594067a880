"""Bodies of Ollama's API, and how strictly they are read.

As Ollama does: fields and options that are not known are ignored, a known one of the wrong type is refused. Whole numbers may be written
with a fraction of zero.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

MAX_STOP_TEXTS = 16
MAX_TOP_LOGPROBS = 20
THINK_LEVELS = ("low", "medium", "high", "max")
_DURATION = re.compile(r"0|[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")


class RequestBody(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _cut_fraction(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(_cut_fraction)]


def _check_duration(value: float | str | None) -> float | str | None:
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is no duration: write it as '5m' or as a number of seconds")
    return value


KeepAlive = Annotated[float | str | None, AfterValidator(_check_duration)]


ThinkValue = bool | str | None


def _check_think(value: ThinkValue) -> ThinkValue:
    if isinstance(value, str) and value not in THINK_LEVELS:
        raise ValueError(
            f'invalid think value: "{value[:40]}" (must be "high", "medium", "low", "max", true, or false)'
        )
    return value


Think = Annotated[ThinkValue, AfterValidator(_check_think)]


def _check_format(value: dict[str, JsonValue] | str | None) -> dict[str, JsonValue] | str | None:
    if isinstance(value, str) and value not in ("", "json"):
        raise ValueError(f'invalid format: "{value[:40]}"; expected "json" or a valid JSON Schema object')
    return value


Format = Annotated[dict[str, JsonValue] | str | None, AfterValidator(_check_format)]


class OptionsBody(RequestBody):
    """Those that change an answer. num_ctx, num_gpu, num_thread, use_mmap and their like change none here."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_k: WholeNumber | None = None
    top_p: float | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = None
    seed: WholeNumber | None = None
    num_predict: WholeNumber | None = None
    repeat_penalty: float | None = Field(None, ge=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=MAX_STOP_TEXTS)


class FunctionBody(RequestBody):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None


class ToolBody(RequestBody):
    type: str | None = None
    function: FunctionBody


class CalledBody(RequestBody):
    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue] | None = None


class ToolCallBody(RequestBody):
    id: str | None = None
    function: CalledBody


class MessageBody(RequestBody):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[JsonValue] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class AnswerBody(RequestBody):
    """What both ways to ask for an answer have."""

    model: str = Field(min_length=1)
    stream: bool | None = None
    format: Format = None
    options: OptionsBody | None = None
    keep_alive: KeepAlive = None
    think: Think = None
    logprobs: bool | None = None
    top_logprobs: WholeNumber | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class ChatBody(AnswerBody):
    """POST /api/chat."""

    messages: list[MessageBody] | None = None
    tools: list[ToolBody] | None = None


class GenerateBody(AnswerBody):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    template: str | None = None
    suffix: str | None = None
    context: list[JsonValue] | None = None
    images: list[JsonValue] | None = None


class ModelBody(RequestBody):
    """A body that names a model; name is the older word for model."""

    model: str | None = None
    name: str | None = None

    @property
    def model_name(self) -> str:
        return self.model or self.name or ""

    @model_validator(mode="after")
    def _check_named(self) -> "ModelBody":
        if not self.model_name:
            raise ValueError("model is required")
        return self


class PullBody(ModelBody):
    """POST /api/pull."""

    stream: bool | None = None
