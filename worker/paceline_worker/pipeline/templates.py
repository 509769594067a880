"""Conversations to tokens: a model's chat template, and what it takes to make one accept what clients send.

Templates are programs that come with models. They differ in what they accept, and say so by raising, or by leaving things out. So what
one can do is tried (probe), and messages are put in other words until it renders them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from paceline_services.domain.generation import Conversation, Message, Reasoning, ToolCall
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.call_formats import CallForm
from paceline_worker.pipeline.messages import Fields, as_fields, list_tools, part_calls, put_generically, rewrite

_PROBE_NAME, _PROBE_VALUE, _PROBE_RESULT = "probe_weather", "probe_lisbon", "probe_sunshine"
_PROBE_OTHER = "probe_porto"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City"}},
            "required": ["city"],
        },
    },
}
_PROBE_CALL = ToolCall("abcdefgh1", _PROBE_NAME, json.dumps({"city": _PROBE_VALUE}))
_PROBE_MESSAGES = (
    Message("user", "How is the weather?"),
    Message("assistant", "", tool_calls=(_PROBE_CALL,)),
    Message("tool", _PROBE_RESULT, name=_PROBE_NAME, tool_call_id="abcdefgh1"),
)


@dataclass(frozen=True, slots=True)
class Rendering:
    """is_generic: calls of tools are asked for, and will be written, in the generic form."""

    tokens: list[int]
    is_generic: bool


class ChatTemplate:
    """The chat template of one tokenizer (mlx-lm's TokenizerWrapper), whose calls come in form; None: nothing could read them."""

    def __init__(self, tokenizer: Any, form: CallForm | None) -> None:
        self._tokenizer = tokenizer
        self._form = form

    def render(self, conversation: Conversation, reasoning: Reasoning | None, *, is_generic: bool) -> Rendering:
        """The tokens of a conversation. is_generic: tools are wanted in the generic form, also where the template has one of its own.

        Raises InvalidRequestError when the template refuses the messages however they are put.
        """
        _check_conversation(conversation)
        if not self._tokenizer.has_chat_template:
            raise InvalidRequestError("this model has no chat template: send a text prompt instead of messages")
        options = self._read_options(conversation, reasoning)
        attempts: list[tuple[bool, list[Fields], list[Fields] | None]] = []
        if self.knows_tools and not is_generic:
            attempts.append((False, self._put_natively(conversation), list_tools(conversation) or None))
        attempts.append((True, put_generically(conversation), None))
        # Some templates go through tools without a look whether there are any.
        attempts.append((True, put_generically(conversation), []))
        first: InvalidRequestError | None = None
        for is_generic_attempt, messages, tools in attempts:
            try:
                tokens = self._render_somehow(messages, tools=tools, **options)
            except InvalidRequestError as error:
                first = first or error
            else:
                return Rendering(tokens, is_generic_attempt)
        raise first or InvalidRequestError("the model's chat template refuses these messages")

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it describes tools, and tells calls and their results, in a form whose calls can be read."""
        if self._form is None:
            return False
        try:
            messages = [as_fields(message) for message in _PROBE_MESSAGES]
            offered = self._render(messages[:1], tools=[_PROBE_TOOL], add_generation_prompt=True, tokenize=False)
            told = self._render(messages, tools=[_PROBE_TOOL], add_generation_prompt=True, tokenize=False)
        except InvalidRequestError:
            return False
        return _PROBE_NAME in offered and told.count(_PROBE_NAME) > 1 and _PROBE_VALUE in told and _PROBE_RESULT in told

    def _put_natively(self, conversation: Conversation) -> list[Fields]:
        messages = [as_fields(message) for message in conversation.messages]
        return messages if self._tells_several_calls else part_calls(messages)

    @cached_property
    def _tells_several_calls(self) -> bool:
        """Whether all calls of a message are told; templates that tell one leave out the others, or raise."""
        other = replace(_PROBE_CALL, id="abcdefgh2", arguments_json=json.dumps({"city": _PROBE_OTHER}))
        result = replace(_PROBE_MESSAGES[2], tool_call_id=other.id)
        asked, called, answered = _PROBE_MESSAGES
        called = replace(called, tool_calls=(_PROBE_CALL, other))
        try:
            messages = [as_fields(message) for message in (asked, called, answered, result)]
            return _PROBE_OTHER in self._render(
                messages, tools=[_PROBE_TOOL], add_generation_prompt=True, tokenize=False
            )
        except InvalidRequestError:
            return False

    def _read_options(self, conversation: Conversation, reasoning: Reasoning | None) -> Fields:
        goes_on = conversation.continue_final_message
        options: Fields = {"add_generation_prompt": not goes_on}
        if goes_on:
            options["continue_final_message"] = True
        if reasoning and reasoning.is_enabled is not None:
            options["enable_thinking"] = reasoning.is_enabled
            if isinstance(getattr(self._tokenizer, "chat_template", None), str):
                options["thinking"] = reasoning.is_enabled  # DeepSeek's and Granite's name of it
        if reasoning and reasoning.effort:
            options["reasoning_effort"] = reasoning.effort
        return options

    def _render_somehow(self, messages: Sequence[Fields], **options: Any) -> list[int]:
        first: InvalidRequestError | None = None
        for candidate in rewrite(messages):
            try:
                self._check_system(candidate, **options)
                return list(self._render(candidate, **options))
            except InvalidRequestError as error:
                first = first or error
        raise first or InvalidRequestError("the conversation is empty: it needs at least one message")

    def _check_system(self, messages: Sequence[Fields], **options: Any) -> None:
        """Raise InvalidRequestError when a system message that does not come first is left out."""
        later = [message["content"].strip() for message in messages[1:] if message["role"] == "system"]
        if later:
            rendered = self._render(messages, tokenize=False, **options)
            if not all(content in rendered for content in later):
                raise InvalidRequestError("the model's chat template leaves out system messages that do not come first")

    def _render(self, messages: Sequence[Fields], **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), **options)
        # Chat templates are programs that come with models: they raise whatever they like about messages they do not accept.
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise InvalidRequestError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise InvalidRequestError(f"the model's chat template refuses these messages: {error}") from error


def _check_conversation(conversation: Conversation) -> None:
    if not conversation.messages:
        raise InvalidRequestError("the conversation is empty: it needs at least one message")
    if not conversation.continue_final_message:
        return
    final = conversation.messages[-1]
    if final.role != "assistant" or final.tool_calls or not final.content:
        raise InvalidRequestError(
            "continue_final_message needs a last message of the assistant with a text to go on with, and without tool_calls"
        )
