"""Fields of OpenAI and of vLLM that would change an answer and are not supported: refused by name, never ignored. Pure.

What changes no answer (user, metadata, store, service_tier, prediction ...) is taken and ignored, as are names that nobody knows.
"""

from collections.abc import Mapping
from typing import Any

from paceline_services.errors import InvalidRequestError

_REFUSED = (
    # OpenAI's
    "audio",
    "moderation",
    "web_search_options",
    # vLLM's
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "chat_template",
    "documents",
    "guided_grammar",
    "guided_json_object",
    "include_stop_str_in_output",
    "length_penalty",
    "logits_processors",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "stop_token_ids",
    "structural_tag",
    "thinking_token_budget",
    "truncate_prompt_tokens",
    "use_beam_search",
)
_NEUTRAL: Mapping[str, Any] = {"add_special_tokens": True, "skip_special_tokens": True, "length_penalty": 1}
"""What says nothing, where that is not null, false, 0 or empty."""


def refuse_unsupported(extra: Mapping[str, Any]) -> None:
    """extra: the fields of a body that its schema does not have."""
    for name in _REFUSED:
        value = extra.get(name)
        neutral = _NEUTRAL.get(name)
        if value not in (None, neutral) if neutral is not None else value:
            raise InvalidRequestError(
                f"{name} is not supported: leave it out", param=name, reason="UNSUPPORTED_PARAMETER"
            )
