"""A conversation's messages as chat templates take them, and other ways of putting them that mean the same. Pure."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paceline_services.domain.generation import Conversation, Message
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.call_formats import spell_generic_call

Fields = dict[str, Any]
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


# -- one message --


def as_fields(message: Message) -> Fields:
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


def put_generically(conversation: Conversation) -> list[Fields]:
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
    fields = {**as_fields(message), "content": "\n".join([*([message.content] if message.content else []), *calls])}
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


def rewrite(messages: Sequence[Fields]) -> Iterator[list[Fields]]:
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


def part_calls(messages: Sequence[Fields]) -> list[Fields]:
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
