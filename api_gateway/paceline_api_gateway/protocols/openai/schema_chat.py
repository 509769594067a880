"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from paceline_api_gateway.protocols.openai.schema import MAX_TOP_LOGPROBS, RequestBody, SamplingBody

NAME = r"^[a-zA-Z0-9_-]{1,64}$"
"""Of functions and of formats, as OpenAI has them."""


class ContentPart(RequestBody):
    """A part of a message: text, or the refusal of an assistant. Other types are refused by their place."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCallBody(RequestBody):
    """arguments: a JSON object as text, as the model wrote it."""

    name: str = Field(min_length=1)
    arguments: str = ""


class ToolCallBody(RequestBody):
    """A call that an assistant's message made."""

    id: str = ""
    type: str = "function"
    function: FunctionCallBody | None = None


def _to_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[
    list[ContentPart] | None, BeforeValidator(_to_parts, json_schema_input_type=str | list[ContentPart] | None)
]


class MessageBody(RequestBody):
    """A message of any role. reasoning_content, or reasoning: what an assistant thought before it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCallBody | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: JsonValue = None
    audio: JsonValue = None


class FunctionBody(RequestBody):
    """A function that the model may call; parameters is a JSON Schema of an object, absent where it takes none."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = Field(None, description="Arguments always match parameters.")


class ToolBody(RequestBody):
    """Only type function is supported."""

    type: str
    function: FunctionBody | None = None


class FunctionName(RequestBody):
    name: str


class ToolName(RequestBody):
    type: str
    function: FunctionName | None = None


class AllowedTools(RequestBody):
    mode: Literal["auto", "required"]
    tools: list[ToolName] = Field(min_length=1)


class ToolChoiceBody(RequestBody):
    """{"type": "function", "function": {"name": ...}}, or {"type": "allowed_tools", "allowed_tools": {...}}."""

    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


def _to_choice(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _to_function_choice(value: Any) -> Any:
    return {"type": "function", "function": value} if isinstance(value, dict) else _to_choice(value)


class JsonSchemaBody(RequestBody):
    """strict makes no difference: the schema always holds."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class ChatTemplateKwargs(RequestBody):
    """vLLM's; other keys are refused."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: bool | None = None


class ChatCompletionRequest(SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="As max_completion_tokens, which goes before it.")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Absent: until the model ends or the context is full."
    )
    logprobs: bool | None = Field(None, description="Tell the log probability of every token of the content.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Alternatives; needs logprobs.")
    tools: list[ToolBody] | None = None
    tool_choice: Annotated[
        ToolChoiceBody | None,
        BeforeValidator(_to_choice, json_schema_input_type=Literal["none", "auto", "required"] | ToolChoiceBody | None),
    ] = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    functions: list[FunctionBody] | None = Field(None, description="Deprecated by OpenAI: see tools.")
    function_call: Annotated[
        ToolChoiceBody | None,
        BeforeValidator(_to_function_choice, json_schema_input_type=Literal["none", "auto"] | FunctionName | None),
    ] = Field(None, description="Deprecated by OpenAI: see tool_choice.")
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    continue_final_message: bool | None = Field(
        None, description="vLLM's: go on with the last, an assistant's message."
    )
    add_generation_prompt: bool | None = Field(None, description="vLLM's: false only with continue_final_message.")
    modalities: list[str] | None = Field(None, description="Only text.")
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Only medium.")
