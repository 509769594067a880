"""A request for text and the events that answer it, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from paceline_services.ids import ModelId, RequestId


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    name: str
    description: str = ""
    parameters_json: str = ""
    is_strict: bool = False


class ToolChoiceMode(StrEnum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: ToolChoiceMode
    name: str = ""
    is_single: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning_text: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice | None = None
    continue_final_message: bool = False


@dataclass(frozen=True, slots=True)
class TokenIds:
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class ChoiceProgress:
    token_ids: tuple[int, ...] = ()
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Exactly one of both is set."""

    json_schema: str | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    is_enabled: bool | None = None
    effort: str = ""
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Exactly one of conversation, text and token_ids is set."""

    model_id: ModelId
    request_id: RequestId = RequestId("")
    conversation: Conversation | None = None
    text: str | None = None
    token_ids: TokenIds | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    num_choices: int = 1
    logprobs: bool = False
    num_top_logprobs: int = 0
    client_id: str = ""
    progress: tuple[ChoiceProgress, ...] = ()
    output_format: OutputFormat | None = None
    reasoning: Reasoning | None = None
    echo: bool = False


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class GenerationStarted:
    request_id: RequestId
    num_prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    text: str
    token_bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class PromptEchoed:
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """id and name come with the first delta of a call; the arguments of all its deltas make one text."""

    index: int
    id: str = ""
    name: str = ""
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    choice_index: int
    token_ids: tuple[int, ...]
    text: str
    first_token_index: int
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning_text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    choice_index: int
    finish_reason: FinishReason
    stop_text: str = ""
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationCompleted:
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0
    time_to_first_token_ms: float = 0.0
    total_duration_ms: float = 0.0
    num_steps: int = 0
    link_duration_ms: float = 0.0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_reasoning_tokens: int = 0


GenerationEvent = GenerationStarted | PromptEchoed | ChoiceDelta | ChoiceFinished | GenerationCompleted
