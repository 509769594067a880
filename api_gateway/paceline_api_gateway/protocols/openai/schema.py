"""Bodies of OpenAI's API, and how strictly they are read.

Fields that we do not know are ignored, as OpenAI does; fields that we know and cannot honour are refused in translate.py.
Numbers must be JSON numbers of the right kind: "0.5" is not 0.5.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_CHOICES = 16
MAX_STOP_TEXTS = 16
MAX_TOP_LOGPROBS = 20


class RequestBody(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class ContentPart(RequestBody):
    """A part of a message; only type text can be read."""

    type: str
    text: str | None = None


class FunctionCallBody(RequestBody):
    name: str
    arguments: str = ""


class ToolCallBody(RequestBody):
    id: str = ""
    function: FunctionCallBody


class MessageBody(RequestBody):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None


class StreamOptions(RequestBody):
    include_usage: bool | None = None


class ResponseFormat(RequestBody):
    type: str


class ChatCompletionRequest(RequestBody):
    """POST /v1/chat/completions. min_p, top_k, repetition_penalty, ignore_eos and return_token_ids are vLLM's extensions."""

    model: str = Field(min_length=1)
    messages: list[MessageBody] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    tools: list[JsonValue] | None = None
    tool_choice: JsonValue = None
    functions: list[JsonValue] | None = None
    function_call: JsonValue = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: JsonValue = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatCompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        return self
