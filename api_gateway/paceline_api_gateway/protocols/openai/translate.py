"""OpenAI's wire form <-> canonical requests and events. Pure.

What OpenAI has and this gateway cannot do yet is refused by name, never ignored: tools, response formats other than text, and
content parts other than text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_api_gateway.protocols.openai.schema import ChatCompletionRequest, MessageBody
from paceline_services.domain.generation import (
    ChoiceDelta,
    Conversation,
    GenerateRequest,
    GenerationCompleted,
    Limits,
    Message,
    Sampling,
    TokenLogprob,
    ToolCall,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId, parse_model_id

Json = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's own value."""
SMALLEST_TOP_P = 1e-6
"""Sent for top_p 0, which OpenAI allows: only the most likely token is kept."""
_MAX_UINT32 = 2**32 - 1
_MARK = "\0"
"""Stands for the text of a delta in a chunk that is made ahead; no id or name of a model has it."""


def to_generate_request(body: ChatCompletionRequest) -> GenerateRequest:
    """The canonical request; raises InvalidRequestError naming the parameter that cannot be honoured."""
    _refuse_unsupported(body)
    seed = None if body.seed is None else body.seed % (1 << 64)
    return GenerateRequest(
        model_id=_parse_model(body.model),
        conversation=Conversation(tuple(_to_message(index, message) for index, message in enumerate(body.messages))),
        sampling=Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=None if body.top_p is None else max(body.top_p, SMALLEST_TOP_P),
            top_k=min(max(0, body.top_k or 0), _MAX_UINT32),
            min_p=body.min_p or 0.0,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=_to_bias(body.logit_bias or {}),
            seed=seed,
        ),
        limits=_to_limits(body),
        num_choices=body.n or 1,
        logprobs=bool(body.logprobs),
        num_top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and response of one request says of it."""

    completion_id: str
    created: int
    model: str
    with_token_ids: bool = False

    def chunk(self, choices: Sequence[Json], usage: Json | None = None, *, has_usage: bool = False) -> Json:
        body = {
            "id": self.completion_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }
        return body | {"choices": list(choices)} | ({"usage": usage} if has_usage else {})

    def role_choice(self, index: int) -> Json:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta_choice(self, delta: ChoiceDelta) -> Json:
        logprobs = {"content": [to_logprob(one) for one in delta.logprobs], "refusal": None} if delta.logprobs else None
        choice: Json = {
            "index": delta.choice_index,
            "delta": {"content": delta.text},
            "logprobs": logprobs,
            "finish_reason": None,
        }
        return choice | ({"token_ids": list(delta.token_ids)} if self.with_token_ids else {})

    def finish_choice(self, index: int, reason: str) -> Json:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def response(self, choices: Sequence[Json], usage: Json) -> Json:
        body = {"id": self.completion_id, "object": "chat.completion", "created": self.created, "model": self.model}
        return body | {"choices": list(choices), "usage": usage}


class ChunkWriter:
    """Writes the chunks of one answer as server-sent events.

    There is a chunk for each token: what all of a choice's have in common is written once, and their text set into it.
    """

    def __init__(self, envelope: Envelope, *, has_usage: bool) -> None:
        self._envelope = envelope
        self._has_usage = has_usage
        self._frames: dict[int, tuple[str, str]] = {}

    def write(self, choices: Sequence[Json], usage: Json | None = None) -> str:
        return write_event(self._envelope.chunk(choices, usage, has_usage=self._has_usage))

    def write_delta(self, delta: ChoiceDelta) -> str:
        if delta.logprobs or self._envelope.with_token_ids:
            return self.write([self._envelope.delta_choice(delta)])
        before, after = self._frames.get(delta.choice_index) or self._make_frame(delta.choice_index)
        return f"{before}{json.dumps(delta.text)}{after}"

    def _make_frame(self, index: int) -> tuple[str, str]:
        chunk = self.write([self._envelope.delta_choice(ChoiceDelta(index, (), _MARK, 0))])
        before, after = chunk.split(json.dumps(_MARK))
        self._frames[index] = before, after
        return before, after


def write_event(body: Json) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


def to_logprob(logprob: TokenLogprob) -> Json:
    named = {"token": logprob.text, "logprob": _finite(logprob.logprob), "bytes": list(logprob.token_bytes)}
    return named | {"top_logprobs": [_without_alternatives(to_logprob(one)) for one in logprob.top]}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def _without_alternatives(logprob: Json) -> Json:
    return {key: value for key, value in logprob.items() if key != "top_logprobs"}


def to_usage(completed: GenerationCompleted) -> Json:
    usage: Json = {
        "prompt_tokens": completed.num_prompt_tokens,
        "completion_tokens": completed.num_completion_tokens,
        "total_tokens": completed.num_prompt_tokens + completed.num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completed.num_cached_tokens},
    }
    if completed.num_drafted_tokens:
        usage["completion_tokens_details"] = {
            "accepted_prediction_tokens": completed.num_accepted_tokens,
            "rejected_prediction_tokens": completed.num_drafted_tokens - completed.num_accepted_tokens,
        }
    return usage


def _parse_model(text: str) -> ModelId:
    try:
        return parse_model_id(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(error.message, param="model") from error


def _refuse_unsupported(body: ChatCompletionRequest) -> None:
    if body.tools:
        raise InvalidRequestError("tools are not supported yet: leave tools and tool_choice out", param="tools")
    if body.tool_choice not in (None, "none"):  # a tuple: it may be a dict
        raise InvalidRequestError("tool_choice is not supported yet: leave it out", param="tool_choice")
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidRequestError(
            f"response_format {body.response_format.type!r} is not supported yet: only 'text' is",
            param="response_format",
        )
    for name in ("functions", "function_call", "audio"):
        if getattr(body, name):
            raise InvalidRequestError(f"{name} is not supported: leave it out", param=name)
    if body.modalities not in (None, ["text"]):
        raise InvalidRequestError("modalities other than text are not supported", param="modalities")


def _to_message(index: int, message: MessageBody) -> Message:
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=_to_text(index, message),
        name=message.name or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
    )


def _to_text(index: int, message: MessageBody) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    for number, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            where = f"messages[{index}].content[{number}]"
            raise InvalidRequestError(
                f"{where}: content of type {part.type!r} is not supported: only text is", param=where
            )
    return "".join(part.text or "" for part in message.content)


def _to_limits(body: ChatCompletionRequest) -> Limits:
    max_tokens = min(body.max_completion_tokens or body.max_tokens or 0, _MAX_UINT32)
    return Limits(max_tokens, _to_stop(body.stop), bool(body.ignore_eos))


def _to_bias(biases: Mapping[str, float]) -> dict[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= _MAX_UINT32):
            raise InvalidRequestError(
                f"logit_bias has the key {token[:40]!r}: keys are token ids, such as '50256'", param="logit_bias"
            )
    return {int(token): bias for token, bias in biases.items()}


def _to_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > 16:
        raise InvalidRequestError("at most 16 stop texts are accepted", param="stop")
    if "" in texts:
        raise InvalidRequestError("a stop text must not be empty", param="stop")
    return texts
