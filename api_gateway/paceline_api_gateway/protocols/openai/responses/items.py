"""Input items: read from a client, as the API shows them again, and as messages of a conversation. Pure.

An item that was read has the form in which GET /v1/responses/{id}/input_items returns it. A reference to a stored item is replaced by that
item before (see list_references).
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, JsonValue

from paceline_api_gateway.protocols.openai.responses.errors import unsupported_value
from paceline_api_gateway.protocols.openai.responses.reasoning import read_reasoning_text
from paceline_api_gateway.protocols.openai.responses.schema import Json, RequestBody, parse
from paceline_services.domain.generation import Message, ToolCall
from paceline_services.errors import InvalidRequestError, NotFoundError

ItemStatus = Literal["in_progress", "completed", "incomplete"]
_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_TEXT_TYPES = frozenset({"input_text", "output_text"})


class _Message(RequestBody):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, JsonValue]]
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class _FunctionCall(RequestBody):
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class _FunctionCallOutput(RequestBody):
    call_id: str = Field(min_length=1)
    output: str | list[dict[str, JsonValue]]
    id: str | None = None
    status: ItemStatus | None = None


class _ReasoningPart(RequestBody):
    text: str


class _Reasoning(RequestBody):
    id: str | None = None
    summary: list[_ReasoningPart] | None = None
    content: list[_ReasoningPart] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class _Part(RequestBody):
    type: str
    text: str | None = None
    refusal: str | None = None


def list_inputs(given: str | Sequence[Json] | None) -> list[Json]:
    """The items that a client sent, a text being a message of a user."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given or ())


def list_references(inputs: Sequence[Json]) -> list[str]:
    """Ids of stored items that stand among the inputs for the items themselves."""
    return [str(one.get("id")) for one in inputs if _type_of(one) == "item_reference"]


def read_items(inputs: Sequence[Json], referenced: Mapping[str, Json]) -> list[Json]:
    """The items, each with an id.

    Raises InvalidRequestError with the path of what cannot be used, NotFoundError for a reference to nothing.
    """
    return [_read_item(item, f"input[{index}]", referenced) for index, item in enumerate(inputs)]


def to_messages(instructions: str | None, items: Iterable[Json]) -> tuple[Message, ...]:
    """The conversation. Raises InvalidRequestError where calls and outputs do not match."""
    items = list(items)
    _check_calls(items)
    builder = _Conversation()
    if instructions:
        builder.messages.append(Message("system", instructions))
    for item in items:
        builder.add(item)
    builder.close_turn()
    return tuple(builder.messages)


def _type_of(item: Json) -> str:
    """An item without a type is a message, or a reference when nothing but an id is there."""
    if kind := item.get("type"):
        return str(kind)
    return "message" if "role" in item else "item_reference" if "id" in item else "message"


def _read_item(item: Json, where: str, referenced: Mapping[str, Json]) -> Json:
    match _type_of(item):
        case "message":
            return _read_message(parse(_Message, item, where), where)
        case "function_call":
            call = parse(_FunctionCall, item, where)
            named = {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}
            return _with_id("function_call", call.id, call.status) | named
        case "function_call_output":
            return _read_output(parse(_FunctionCallOutput, item, where), where)
        case "reasoning":
            return _read_reasoning(parse(_Reasoning, item, where), where)
        case "item_reference":
            return _resolve(str(item.get("id")), where, referenced)
        case other:
            raise unsupported_value(
                f"{where}.type",
                f"items of type {other[:60]!r} are not supported: message, function_call, function_call_output, reasoning and"
                " item_reference are",
            )


def _resolve(item_id: str, where: str, referenced: Mapping[str, Json]) -> Json:
    if item_id not in referenced:
        raise NotFoundError(
            f"{where}: Item with id {item_id[:80]!r} not found: items of responses that were sent with store false, have expired, or lie on"
            " another gateway cannot be referred to; send the item itself",
            reason="ITEM_NOT_FOUND",
            param=where,
        )
    return referenced[item_id]


def _with_id(kind: str, item_id: str | None, status: ItemStatus | None) -> Json:
    return {
        "id": item_id or f"{_ID_PREFIXES[kind]}_{secrets.token_hex(16)}",
        "type": kind,
        "status": status or "completed",
    }


def _read_message(message: _Message, where: str) -> Json:
    is_ours = message.role == "assistant"
    content = message.content
    if isinstance(content, str):
        parts = [_Part(type="input_text", text=content)]
    else:
        parts = [_read_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    shown = [_show_output_part(part) if is_ours else {"type": "input_text", "text": part.text} for part in parts]
    phase = {"phase": message.phase} if message.phase else {}
    return _with_id("message", message.id, message.status) | {"role": message.role, "content": shown} | phase


def _read_part(value: Json, where: str) -> _Part:
    part = parse(_Part, value, where)
    if part.type == "refusal" and part.refusal is not None:
        return part
    if part.type not in _TEXT_TYPES:
        raise unsupported_value(f"{where}.type", f"content of type {part.type[:60]!r} is not supported: only text is")
    if part.text is None:
        raise InvalidRequestError(f"{where}.text: Field required", param=f"{where}.text")
    return part


def _show_output_part(part: _Part) -> Json:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.refusal}
    return {"type": "output_text", "text": part.text, "annotations": []}


def _read_output(output: _FunctionCallOutput, where: str) -> Json:
    shown: str | list[Json]
    if isinstance(output.output, str):
        shown = output.output
    else:
        parts = [_read_part(part, f"{where}.output[{index}]") for index, part in enumerate(output.output)]
        shown = [{"type": "input_text", "text": part.text or part.refusal} for part in parts]
    item = _with_id("function_call_output", output.id, output.status)
    return item | {"call_id": output.call_id, "output": shown}


def _read_reasoning(reasoning: _Reasoning, where: str) -> Json:
    item = _with_id("reasoning", reasoning.id, reasoning.status)
    item["summary"] = [{"type": "summary_text", "text": part.text} for part in reasoning.summary or ()]
    if reasoning.content is not None:
        item["content"] = [{"type": "reasoning_text", "text": part.text} for part in reasoning.content]
    if reasoning.encrypted_content is not None:
        item["encrypted_content"] = reasoning.encrypted_content
    read_reasoning_text(item, where)
    return item


def _check_calls(items: Sequence[Json]) -> None:
    """As OpenAI does: an output answers a call before it, and every call is answered."""
    open_calls: dict[str, bool] = {}
    for item in items:
        if item["type"] == "function_call":
            open_calls[item["call_id"]] = True
        elif item["type"] == "function_call_output":
            if item["call_id"] not in open_calls:
                raise InvalidRequestError(
                    f"No tool call found for function call output with call_id {item['call_id'][:80]}.", param="input"
                )
            open_calls[item["call_id"]] = False
    for call_id, is_open in open_calls.items():
        if is_open:
            raise InvalidRequestError(f"No tool output found for function call {call_id[:80]}.", param="input")


@dataclass(slots=True)
class _Conversation:
    """Puts items together: what the assistant thought, said and called in one turn is one message."""

    messages: list[Message] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Of the functions that were called, by the id of the call."""
    reasoning: str = ""
    content: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, item: Json) -> None:
        match item["type"]:
            case "reasoning":
                if self.content is not None or self.calls:
                    self.close_turn()
                self.reasoning += read_reasoning_text(item, "input")
            case "function_call":
                self.names[item["call_id"]] = item["name"]
                self.calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
            case "function_call_output":
                self.close_turn()
                name, text = self.names.get(item["call_id"], ""), _join(item["output"])
                self.messages.append(Message("tool", text, name=name, tool_call_id=item["call_id"]))
            case "message" if item["role"] == "assistant":
                if self.content is not None or self.calls:
                    self.close_turn()
                self.content = _join(item["content"])
            case _:
                self.close_turn()
                role = "system" if item["role"] == "developer" else item["role"]
                self.messages.append(Message(role, _join(item["content"])))

    def close_turn(self) -> None:
        """What the assistant did so far is a message."""
        if self.reasoning or self.content is not None or self.calls:
            calls = tuple(self.calls)
            self.messages.append(
                Message("assistant", self.content or "", tool_calls=calls, reasoning_text=self.reasoning)
            )
        self.reasoning, self.content, self.calls = "", None, []


def _join(content: str | list[dict[str, Any]]) -> str:
    """Parts follow each other without anything between them."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)
