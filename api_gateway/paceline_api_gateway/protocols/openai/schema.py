"""What the bodies of OpenAI's API have in common, and how strictly they are read.

Fields that nobody knows are ignored, as OpenAI's clients send extras; fields that are known and cannot be honoured are refused by name
(unsupported.py). Numbers must be JSON numbers of the right kind: "0.5" is not 0.5.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

MAX_CHOICES = 16
MAX_STOP_TEXTS = 16
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 2048


class RequestBody(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(RequestBody):
    """include_obfuscation is taken and changes nothing: there is no padding."""

    include_usage: bool | None = Field(None, description="One more chunk before the end, with usage and no choices.")
    include_obfuscation: bool | None = None


class StructuredOutputs(RequestBody):
    """vLLM's: the form of the answer. One of them."""

    model_config = ConfigDict(extra="forbid")

    json_: JsonValue = Field(None, alias="json", description="A JSON Schema, as an object or as text.")
    regex: str | None = Field(None, description="A regular expression that the whole answer matches.")
    choice: list[str] | None = Field(None, description="The answer is one of these.")


class FormatBody(RequestBody):
    """vLLM's ways to ask for a form; the fields of a response format are the chat's own."""

    guided_json: JsonValue = Field(None, description="vLLM's: a JSON Schema, as an object or as text.")
    guided_regex: str | None = Field(None, description="vLLM's: a regular expression that the whole answer matches.")
    guided_choice: list[str] | None = Field(None, description="vLLM's: the answer is one of these.")
    structured_outputs: StructuredOutputs | None = None


class SamplingBody(FormatBody):
    """Fields of chat completions and completions alike. Fields of vLLM: top_k, min_p, repetition_penalty, ignore_eos, return_token_ids."""

    model_config = ConfigDict(extra="allow")  # so that unsupported fields can be refused by name

    model: str = Field(min_length=1, description="Id of a model; see GET /v1/models.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events as it comes.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choices to generate.")
    temperature: float | None = Field(None, ge=0, le=2, description="1 when absent; 0 takes the most likely token.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0 are off.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Added to the logits of tokens, by token id."
    )
    seed: int | None = Field(None, description="Same seed, same request, same answer.")
    stop: Annotated[list[str] | None, BeforeValidator(_listed, json_schema_input_type=str | list[str] | None)] = Field(
        None, description=f"A text or up to {MAX_STOP_TEXTS}, at which the answer ends; they are no part of it."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-sequence token, for benchmarks.")
    return_token_ids: bool | None = Field(None, description="Tell token_ids in every choice.")


Prompts = list[str] | list[list[int]]


def _to_prompts(value: Any) -> Any:
    """One prompt or several, as several."""
    if isinstance(value, str) or _is_tokens(value):
        return [value]
    if not isinstance(value, list) or not value or not (all(map(_is_text, value)) or all(map(_is_tokens, value))):
        raise ValueError(
            "must be a text, a list of texts, a list of token ids, or a list of lists of token ids; none empty"
        )
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"must be at most {MAX_PROMPTS} in one request")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(one) is int and 0 <= one < 2**32 for one in value)  # not True, which is an int too
    )


PromptField = Annotated[
    Prompts, BeforeValidator(_to_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
]


class CompletionRequest(SamplingBody):
    """POST /v1/completions."""

    prompt: PromptField = Field(description="One prompt or several; choices of each follow one another.")
    max_tokens: int | None = Field(None, ge=0, description="16 when absent; 0 only with echo.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Alternatives to tell with each token.")
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only the value of n.")
    suffix: str | None = Field(None, description="Only empty.")


class EmbeddingRequest(RequestBody):
    """POST /v1/embeddings."""

    model: str = Field(min_length=1)
    input: PromptField
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None
