"""POST /v1/chat/completions -> the canonical request. Pure.

What OpenAI has and this gateway cannot do is refused by the name of its field, never ignored.
"""

from collections.abc import Mapping

from paceline_api_gateway.protocols.openai.schema_chat import ChatCompletionRequest, ResponseFormat
from paceline_api_gateway.protocols.openai.translate_messages import to_messages
from paceline_api_gateway.protocols.openai.translate_sampling import (
    ANY_OBJECT,
    choose_format,
    list_formats,
    parse_model,
    to_limits,
    to_sampling,
    to_schema_text,
)
from paceline_api_gateway.protocols.openai.translate_tools import to_offer
from paceline_api_gateway.protocols.openai.unsupported import refuse_unsupported
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    OutputFormat,
    Reasoning,
    ToolChoice,
    ToolChoiceMode,
)
from paceline_services.errors import InvalidRequestError

_EFFORTS: Mapping[str, Reasoning] = {
    "none": Reasoning(is_enabled=False),
    "minimal": Reasoning(is_enabled=True, effort="low"),
    "low": Reasoning(is_enabled=True, effort="low"),
    "medium": Reasoning(is_enabled=True, effort="medium"),
    "high": Reasoning(is_enabled=True, effort="high"),
    "xhigh": Reasoning(is_enabled=True, effort="high"),
    "max": Reasoning(is_enabled=True, effort="high"),
}
"""Chat templates know low, medium and high."""


def to_generate_request(body: ChatCompletionRequest) -> GenerateRequest:
    """The canonical request; raises InvalidRequestError naming the parameter that cannot be honoured."""
    _refuse(body)
    conversation = _to_conversation(body)
    return GenerateRequest(
        model_id=parse_model(body.model),
        conversation=conversation,
        sampling=to_sampling(body),
        limits=to_limits(body, body.max_completion_tokens or body.max_tokens or 0),
        num_choices=body.n or 1,
        logprobs=bool(body.logprobs),
        num_top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
        output_format=_to_format(body, conversation.tool_choice),
        reasoning=_to_reasoning(body),
    )


def _refuse(body: ChatCompletionRequest) -> None:
    refuse_unsupported(body.model_extra or {})
    if body.modalities not in (None, ["text"]):
        raise InvalidRequestError("modalities other than text are not supported", param="modalities")
    if body.verbosity not in {None, "medium"}:
        raise InvalidRequestError(f"verbosity {body.verbosity!r} is not supported: leave it out", param="verbosity")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError("top_logprobs is only allowed when logprobs is true", param="top_logprobs")


def _to_conversation(body: ChatCompletionRequest) -> Conversation:
    tools, choice = to_offer(body)
    return Conversation(to_messages(body.messages), tools, choice, _is_continued(body))


def _is_continued(body: ChatCompletionRequest) -> bool:
    """vLLM's pair of fields: exactly one of them may be true."""
    if not body.continue_final_message:
        if body.add_generation_prompt is False:
            raise InvalidRequestError(
                "add_generation_prompt false is only supported with continue_final_message",
                param="add_generation_prompt",
            )
        return False
    if body.add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    if body.messages[-1].role != "assistant":
        raise InvalidRequestError(
            "continue_final_message needs a last message of role 'assistant'", param="continue_final_message"
        )
    return True


def _to_format(body: ChatCompletionRequest, choice: ToolChoice | None) -> OutputFormat | None:
    formats = dict(list_formats(body))
    if body.response_format is not None and body.response_format.type != "text":
        formats["response_format"] = OutputFormat(json_schema=_to_schema(body.response_format))
    chosen = choose_format(formats)
    # A form is that of the text, and an answer that must be calls has none.
    return None if choice is not None and choice.mode is ToolChoiceMode.REQUIRED else chosen


def _to_schema(wanted: ResponseFormat) -> str:
    if wanted.type == "json_object":
        return ANY_OBJECT
    body, param = wanted.json_schema, "response_format.json_schema"
    if body is None:
        raise InvalidRequestError(f"{param} is missing", param=param)
    if body.schema_ is None:
        raise InvalidRequestError(f"{param}.schema is missing", param=f"{param}.schema")
    return to_schema_text(body.schema_)


def _to_reasoning(body: ChatCompletionRequest) -> Reasoning | None:
    wanted = _EFFORTS.get(body.reasoning_effort or "")
    if body.chat_template_kwargs is None or body.chat_template_kwargs.enable_thinking is None:
        return wanted
    is_enabled = body.chat_template_kwargs.enable_thinking
    return Reasoning(is_enabled=is_enabled, effort=wanted.effort if wanted and is_enabled else "")
