"""Bodies of Claude's API, and how strictly they are read.

Fields that we do not know are ignored: betas come and go, and clients send theirs everywhere. Fields that we know and cannot honour are
refused by name in translate_request.py and translate_messages.py; docs/claude.md has the table. Numbers must be JSON numbers.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

MAX_STOP_TEXTS = 16
MIN_THINKING_TOKENS = 1024


class RequestBody(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class TextBlock(RequestBody):
    type: Literal["text"]
    text: str


class ThinkingBlock(RequestBody):
    """What the model thought in an earlier turn. The signature is not checked: thinking of any server may be sent."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(RequestBody):
    """Thinking that only its maker can read: left out."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(RequestBody):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: dict[str, JsonValue]


class UnreadableBlock(RequestBody):
    """An image, a document or another block that no model here can read; refused by its path."""

    type: str


def _tag_block(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return kind if isinstance(kind, str) and kind in _BLOCK_TYPES else "unreadable"


ResultPart = Annotated[
    Annotated[TextBlock, Tag("text")] | Annotated[UnreadableBlock, Tag("unreadable")],
    Discriminator(lambda part: tag if (tag := _tag_block(part)) == "text" else "unreadable"),
]


class ToolResultBlock(RequestBody):
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1)
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None


_BLOCK_TYPES = frozenset({"text", "thinking", "redacted_thinking", "tool_use", "tool_result"})
Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[UnreadableBlock, Tag("unreadable")],
    Discriminator(_tag_block),
]


class TurnBody(RequestBody):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolBody(RequestBody):
    """A tool that the client runs. Tools of another type are Claude's own and are refused."""

    type: str | None = None
    name: str = Field("", max_length=128)
    description: str | None = None
    input_schema: dict[str, JsonValue] | None = None
    strict: bool | None = None


class ToolChoiceBody(RequestBody):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(RequestBody):
    """display omitted: the answer has a thinking block without text."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=MIN_THINKING_TOKENS)
    display: Literal["summarized", "omitted"] | None = None


class FormatBody(RequestBody):
    type: Literal["json_schema"]
    json_schema: dict[str, JsonValue] = Field(alias="schema")


class OutputConfigBody(RequestBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: FormatBody | None = None


class PromptBody(RequestBody):
    """What makes a prompt: all of POST /v1/messages/count_tokens, and a part of POST /v1/messages."""

    model: str = Field(min_length=1)
    messages: list[TurnBody] = Field(min_length=1)
    system: str | list[ResultPart] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfigBody | None = None
    output_format: FormatBody | None = None
    mcp_servers: list[JsonValue] | None = None
    container: JsonValue = None
    compaction: JsonValue = None
    thread: JsonValue = None


class CountTokensRequest(PromptBody):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(PromptBody):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = Field(None, max_length=MAX_STOP_TEXTS)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
