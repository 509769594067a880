"""Conversations to tokens: a model's chat template, and what it takes to make one accept what clients send.

Templates are programs that come with models. They differ in what they accept, and say so by raising, or by leaving things out. So what
one can do is tried (probe), and messages are put in other words until it renders them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from paceline_services.domain.generation import Conversation, Message, Reasoning, ToolCall
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.call_formats import CallForm, spell_generic_call

Fields = dict[str, Any]
Rewrite = Callable[[Sequence[Fields]], list[Fields]]
_TOOLS_HEADING = """# Tools

You may call one or more of these functions to help with the user's request. Each line between <tools> and </tools> describes one:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": <name of the function>, "arguments": <its arguments>}}
</tool_call>"""
_IS_RESPONSE = "is_response"
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
        attempts.append((True, _put_generically(conversation), None))
        # Some templates go through tools without a look whether there are any.
        attempts.append((True, _put_generically(conversation), []))
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
            messages = [_as_fields(message) for message in _PROBE_MESSAGES]
            offered = self._render(messages[:1], tools=[_PROBE_TOOL], add_generation_prompt=True, tokenize=False)
            told = self._render(messages, tools=[_PROBE_TOOL], add_generation_prompt=True, tokenize=False)
        except InvalidRequestError:
            return False
        return _PROBE_NAME in offered and told.count(_PROBE_NAME) > 1 and _PROBE_VALUE in told and _PROBE_RESULT in told

    def _put_natively(self, conversation: Conversation) -> list[Fields]:
        messages = [_as_fields(message) for message in conversation.messages]
        return messages if self._tells_several_calls else _part_calls(messages)

    @cached_property
    def _tells_several_calls(self) -> bool:
        """Whether all calls of a message are told; templates that tell one leave out the others, or raise."""
        other = replace(_PROBE_CALL, id="abcdefgh2", arguments_json=json.dumps({"city": _PROBE_OTHER}))
        result = replace(_PROBE_MESSAGES[2], tool_call_id=other.id)
        asked, called, answered = _PROBE_MESSAGES
        called = replace(called, tool_calls=(_PROBE_CALL, other))
        try:
            messages = [_as_fields(message) for message in (asked, called, answered, result)]
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
        for candidate in _rewrite(messages):
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


def list_tools(conversation: Conversation) -> list[Fields]:
    """The tools in OpenAI's form. Raises InvalidRequestError when parameters are not JSON."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": _parse(tool.parameters_json) or {"type": "object", "properties": {}},
            },
        }
        for tool in conversation.tools
    ]


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


# -- one message --


def _as_fields(message: Message) -> Fields:
    fields: Fields = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning_text:
        fields["reasoning_content"] = message.reasoning_text
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _parse(call.arguments_json)},
            }
            for call in message.tool_calls
        ]
    return fields


def _parse(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise InvalidRequestError(f"a tool's parameters or arguments are not JSON: {error}") from error


# -- the generic form --


def _put_generically(conversation: Conversation) -> list[Fields]:
    """The messages for a template that knows no tools: described in the system message, calls and results as text."""
    messages: list[Fields] = []
    for message in conversation.messages:
        if message.role == "tool":
            _add_response(messages, message.content)
        else:
            messages.append(_spell_calls(message))
    for fields in messages:
        fields.pop(_IS_RESPONSE, None)
    tools = list_tools(conversation)
    if tools:
        described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        _add_to_system(messages, _TOOLS_HEADING.format(tools=described))
    return messages


def _spell_calls(message: Message) -> Fields:
    calls = [spell_generic_call(call.name, _parse(call.arguments_json)) for call in message.tool_calls]
    fields = {**_as_fields(message), "content": "\n".join([*([message.content] if message.content else []), *calls])}
    fields.pop("tool_calls", None)
    return fields


def _add_response(messages: list[Fields], content: str) -> None:
    """A tool's result, in the user's name, together with those beside it."""
    text = f"<tool_response>\n{content}\n</tool_response>"
    last = messages[-1] if messages else {}
    if last.get(_IS_RESPONSE):
        last["content"] += f"\n{text}"
    else:
        messages.append({"role": "user", "content": text, _IS_RESPONSE: True})


def _add_to_system(messages: list[Fields], text: str) -> None:
    first = messages[0]
    if first["role"] == "system":
        messages[0] = {**first, "content": "\n\n".join(filter(None, [first["content"], text]))}
    else:
        messages.insert(0, {"role": "system", "content": text})


# -- other ways to put messages --


def _rewrite(messages: Sequence[Fields]) -> Iterator[list[Fields]]:
    """The messages as they are, and then in ways that more templates accept: each meaning the same."""
    yield list(messages)
    shortened = _shorten_ids(messages)
    yield shortened
    yield _spell_arguments(messages)
    gathered = _gather_system(shortened)
    yield gathered
    joined = _begin_with_user(_join_neighbours(gathered))
    yield joined
    yield _join_neighbours(_fold_system(joined))


def _part_calls(messages: Sequence[Fields]) -> list[Fields]:
    """Every call in a message of its own, with its result behind it."""
    results = {message["tool_call_id"]: message for message in messages if message.get("tool_call_id")}
    parted: list[Fields] = []
    told: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls", [])
        if message.get("tool_call_id") in told:
            continue
        if len(calls) < 2:
            parted.append(message)
            continue
        for call in calls:
            parted.append({**message, "content": "" if told else message["content"], "tool_calls": [call]})
            if call["id"] in results:
                parted.append(results[call["id"]])
                told.add(call["id"])
    return parted


def _shorten_ids(messages: Sequence[Fields]) -> list[Fields]:
    """Nine letters and digits each, as Mistral's templates want them."""
    rewritten = []
    for message in messages:
        changed = dict(message)
        if "tool_call_id" in message:
            changed["tool_call_id"] = _shorten(message["tool_call_id"])
        if "tool_calls" in message:
            changed["tool_calls"] = [{**call, "id": _shorten(call["id"])} for call in message["tool_calls"]]
        rewritten.append(changed)
    return rewritten


def _shorten(call_id: str) -> str:
    return hashlib.blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _spell_arguments(messages: Sequence[Fields]) -> list[Fields]:
    """Arguments as JSON text instead of objects."""

    def spell(call: Mapping[str, Any]) -> Fields:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return [
        {**message, "tool_calls": [spell(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else dict(message)
        for message in messages
    ]


def _gather_system(messages: Sequence[Fields]) -> list[Fields]:
    """All system messages as one, at the beginning."""
    texts = [message["content"] for message in messages if message["role"] == "system"]
    rest = [dict(message) for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest] if texts else rest


def _join_neighbours(messages: Sequence[Fields]) -> list[Fields]:
    """Neighbouring messages of a role as one."""
    joined: list[Fields] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if last.get("role") == message["role"] != "tool":
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            content = "\n\n".join(filter(None, [last["content"], message["content"]]))
            joined[-1] = {**last, "content": content, **({"tool_calls": calls} if calls else {})}
        else:
            joined.append(dict(message))
    return joined


def _begin_with_user(messages: Sequence[Fields]) -> list[Fields]:
    """With an empty message of the user before an assistant's that comes first."""
    at = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    is_wanted = at < len(messages) and messages[at]["role"] == "assistant"
    return [*messages[:at], *([{"role": "user", "content": ""}] if is_wanted else []), *messages[at:]]


def _fold_system(messages: Sequence[Fields]) -> list[Fields]:
    """The system message as the beginning of the user's first one."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    at = next((index for index, message in enumerate(rest) if message["role"] == "user"), None)
    if at is None:
        return [{**system, "role": "user"}, *rest]
    rest[at] = {**rest[at], "content": f"{system['content']}\n\n{rest[at]['content']}"}
    return rest
