"""Pieces that all of OpenAI's answers are made of: events, usage, log probabilities, and what every body says of its answer. Pure."""

import math
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import orjson

from paceline_services.domain.generation import FinishReason, GenerationCompleted, TokenLogprob

Json = dict[str, Any]

DONE = "data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's own value."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk and body of one answer says of it."""

    answer_id: str
    created: int
    model: str
    fingerprint: str = ""

    def wrap(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def make_fingerprint() -> str:
    """Names what computes answers as far as a gateway knows it: the same for every gateway of one version."""
    return f"fp_{blake2b(version('paceline-api-gateway').encode(), digest_size=5).hexdigest()}"


def write_event(body: Json) -> str:
    """One server-sent event."""
    return f"data: {orjson.dumps(body).decode()}\n\n"


def write_text(text: str) -> str:
    """As JSON."""
    return orjson.dumps(text).decode()


def to_logprob(logprob: TokenLogprob) -> Json:
    return _name(logprob) | {"top_logprobs": [_name(one) for one in logprob.top]}


def _name(logprob: TokenLogprob) -> Json:
    return {
        "token": logprob.text,
        "logprob": make_finite(logprob.logprob),
        "bytes": list(logprob.token_bytes),
    }


def make_finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def to_usage(completed: GenerationCompleted) -> Json:
    details = {"reasoning_tokens": completed.num_reasoning_tokens}
    if completed.num_drafted_tokens:
        details["accepted_prediction_tokens"] = completed.num_accepted_tokens
        details["rejected_prediction_tokens"] = completed.num_drafted_tokens - completed.num_accepted_tokens
    return {
        "prompt_tokens": completed.num_prompt_tokens,
        "completion_tokens": completed.num_completion_tokens,
        "total_tokens": completed.num_prompt_tokens + completed.num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completed.num_cached_tokens},
        "completion_tokens_details": details,
    }


def to_finish_reason(reason: FinishReason, *, is_legacy: bool) -> str:
    """is_legacy: calls are told as function_call."""
    return "function_call" if is_legacy and reason is FinishReason.TOOL_CALLS else reason.value
