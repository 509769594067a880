"""From OpenAI's request to the canonical one. Pure.

What a client asks for and we cannot do yet is refused by name, never silently left out.
"""

from collections.abc import Mapping

from paceline_services.domain.generation import Conversation, GenerateRequest, Limits, Message, Sampling, ToolCall
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId, RequestId

from paceline_api_gateway.protocols.openai.schema import (
    MAX_STOP_TEXTS,
    ChatCompletionRequest,
    ContentPart,
    MessageBody,
)

DEFAULT_TEMPERATURE = 1.0
SMALLEST_TOP_P = 1e-6
"""Sent for top_p 0, which OpenAI allows: only the most likely token is kept."""
_MAX_UINT32 = 2**32 - 1
_SEED_MODULUS = 2**64


def to_generate_request(body: ChatCompletionRequest, request_id: RequestId) -> GenerateRequest:
    """The canonical request. Raises InvalidRequestError, with the field's path in the fact "param"."""
    _refuse_unsupported(body)
    return GenerateRequest(
        model_id=ModelId(body.model),
        request_id=request_id,
        conversation=Conversation(tuple(_to_message(one, index) for index, one in enumerate(body.messages))),
        sampling=_to_sampling(body),
        limits=_to_limits(body),
        num_choices=body.n or 1,
        logprobs=bool(body.logprobs),
        num_top_logprobs=body.top_logprobs or 0,
    )


def _refuse_unsupported(body: ChatCompletionRequest) -> None:
    asked = {
        "tools": bool(body.tools),
        "tool_choice": body.tool_choice not in (None, "none", "auto"),
        "functions": bool(body.functions),
        "function_call": body.function_call not in (None, "none", "auto"),
        "response_format": body.response_format is not None and body.response_format.type != "text",
        "modalities": any(modality != "text" for modality in body.modalities or ()),
        "audio": body.audio is not None,
    }
    for param, is_asked in asked.items():
        if is_asked:
            raise InvalidRequestError(
                f"{param} is not supported by this server yet: leave it out",
                reason="UNSUPPORTED_PARAMETER",
                param=param,
            )


def _to_message(body: MessageBody, index: int) -> Message:
    return Message(
        role="system" if body.role == "developer" else body.role,
        content=_to_text(body.content, index),
        name=body.name or "",
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments) for call in body.tool_calls or ()
        ),
        tool_call_id=body.tool_call_id or "",
    )


def _to_text(content: str | list[ContentPart] | None, index: int) -> str:
    """The text of a message; parts follow each other without anything between them."""
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise InvalidRequestError(
                f"messages[{index}].content[{number}] is of type {part.type!r}: this server reads parts with "
                'type "text" and their text',
                reason="UNSUPPORTED_CONTENT",
                param=f"messages[{index}].content[{number}].type",
            )
    return "".join(part.text or "" for part in content)


def _to_sampling(body: ChatCompletionRequest) -> Sampling:
    return Sampling(
        temperature=DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
        top_p=None if body.top_p is None else max(body.top_p, SMALLEST_TOP_P),
        top_k=min(max(body.top_k or 0, 0), _MAX_UINT32),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_to_logit_bias(body.logit_bias or {}),
        seed=None if body.seed is None else body.seed % _SEED_MODULUS,
    )


def _to_logit_bias(biases: Mapping[str, float]) -> Mapping[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= _MAX_UINT32):
            raise InvalidRequestError(
                f'logit_bias has the key {token[:40]!r}: keys are token ids, such as "50256"',
                reason="INVALID_VALUE",
                param="logit_bias",
            )
    return {int(token): bias for token, bias in biases.items()}


def _to_limits(body: ChatCompletionRequest) -> Limits:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > MAX_STOP_TEXTS or "" in stop:
        raise InvalidRequestError(
            f"stop takes up to {MAX_STOP_TEXTS} texts that are not empty", reason="INVALID_VALUE", param="stop"
        )
    max_tokens = body.max_completion_tokens or body.max_tokens or 0
    return Limits(min(max_tokens, _MAX_UINT32), stop, bool(body.ignore_eos))
