"""Ollama's bodies -> canonical requests. Pure.

What Ollama has and this gateway cannot do is refused by name: images, templates and contexts of the client's, suffixes. Options that say
how a model is loaded change nothing here, where the cluster loads it. What is not said is as Ollama has it: temperature 0.8, top_k 40,
top_p 0.9.
"""

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from paceline_api_gateway.protocols.ollama.schema import (
    AnswerBody,
    ChatBody,
    GenerateBody,
    OptionsBody,
    ThinkValue,
    ToolBody,
)
from paceline_api_gateway.protocols.ollama.translate_messages import to_messages
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Limits,
    Message,
    OutputFormat,
    Reasoning,
    Sampling,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId

DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 0.9
RANDOM_SEED = -1
SMALLEST_TOP_P = 1e-6
"""Sent for top_p 0: only the most likely token is kept."""
MAX_UINT32 = 2**32 - 1
ANY_OBJECT = '{"type": "object"}'
_NO_TIME = re.compile(r"[-+]?[0.]+(?:ns|us|µs|μs|ms|s|m|h)?")


def to_chat_request(body: ChatBody, model_id: ModelId) -> GenerateRequest:
    """The canonical request for at least one message; raises InvalidRequestError naming the parameter that cannot be honoured."""
    messages = to_messages(body.messages or ())
    tools = tuple(_to_tool(number, tool) for number, tool in enumerate(body.tools or ()))
    return _make_request(body, model_id, _converse(messages, tools))


def to_generate_request(body: GenerateBody, model_id: ModelId) -> GenerateRequest:
    """The canonical request for a prompt that check_supported found nothing wrong with."""
    if body.raw:
        return _make_request(body, model_id, body.prompt or "")
    system = [Message("system", body.system)] if body.system else []
    return _make_request(body, model_id, _converse([*system, Message("user", body.prompt or "")], ()))


def asks_nothing(body: ChatBody | GenerateBody) -> bool:
    """Whether there is no prompt: then the model is only to be loaded, or unloaded."""
    return not (body.messages if isinstance(body, ChatBody) else body.prompt)


def asks_unload(body: AnswerBody) -> bool:
    """Whether keep_alive is no time at all."""
    wish = body.keep_alive
    return _NO_TIME.fullmatch(wish) is not None if isinstance(wish, str) else wish == 0


def _make_request(body: AnswerBody, model_id: ModelId, prompt: Conversation | str) -> GenerateRequest:
    options = body.options or OptionsBody.model_validate({})
    if options.typical_p not in (None, 0, 1):
        raise _refuse("options.typical_p", "it is not supported: use top_p or min_p")
    return GenerateRequest(
        model_id=model_id,
        conversation=prompt if isinstance(prompt, Conversation) else None,
        text=prompt if isinstance(prompt, str) else None,
        sampling=_to_sampling(options),
        limits=Limits(min(max(0, options.num_predict or 0), MAX_UINT32), tuple(options.stop or ())),
        logprobs=bool(body.logprobs),
        num_top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
        output_format=_to_format(body.format),
        reasoning=_to_reasoning(body.think) if isinstance(prompt, Conversation) else None,
    )


def _to_sampling(options: OptionsBody) -> Sampling:
    top_k = DEFAULT_TOP_K if options.top_k is None else options.top_k
    top_p = DEFAULT_TOP_P if options.top_p is None else options.top_p
    return Sampling(
        temperature=DEFAULT_TEMPERATURE if options.temperature is None else options.temperature,
        top_p=min(max(top_p, SMALLEST_TOP_P), 1.0),
        top_k=min(max(0, top_k), MAX_UINT32),
        min_p=options.min_p or 0.0,
        repetition_penalty=options.repeat_penalty or None,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        seed=None if options.seed in (None, RANDOM_SEED) else options.seed % (1 << 64),
    )


def _to_format(wanted: Mapping[str, JsonValue] | str | None) -> OutputFormat | None:
    if not wanted:
        return None
    return OutputFormat(json_schema=ANY_OBJECT if isinstance(wanted, str) else json.dumps(wanted, ensure_ascii=False))


def _to_reasoning(think: ThinkValue) -> Reasoning | None:
    if think is None or think == "":
        return None
    if isinstance(think, bool):
        return Reasoning(think)
    return Reasoning(is_enabled=True, effort="high" if think == "max" else think)


def _converse(messages: Sequence[Message], tools: tuple[ToolDefinition, ...]) -> Conversation:
    """An answer goes on with an assistant's text where that is last, as it does with Ollama's templates."""
    last = messages[-1]
    goes_on = last.role == "assistant" and bool(last.content) and not last.tool_calls
    return Conversation(tuple(messages), tools, continue_final_message=goes_on)


def _to_tool(number: int, tool: ToolBody) -> ToolDefinition:
    if tool.type not in (None, "", "function"):
        raise _refuse(f"tools[{number}].type", f"{tool.type[:40]!r} is not supported: only 'function' is")
    function = tool.function
    schema = json.dumps(function.parameters, ensure_ascii=False) if function.parameters else ""
    return ToolDefinition(function.name, function.description or "", schema)


def check_supported(body: GenerateBody) -> None:
    """Raises InvalidRequestError naming the parameter that cannot be honoured."""
    if body.raw and (body.template or body.system or body.context):
        raise InvalidRequestError("raw mode does not support template, system, or context", param="raw")
    if body.suffix:
        raise _refuse("suffix", f"{body.model} does not support insert")
    for name in ("template", "context", "images"):
        if getattr(body, name):
            raise _refuse(name, "it is not supported here: leave it out")


def _refuse(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {why}", param=param)
