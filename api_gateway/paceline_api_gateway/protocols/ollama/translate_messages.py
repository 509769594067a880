"""Ollama's messages -> those of a conversation. Pure.

Older clients give calls no ids and name a result by its tool, or not at all: it answers the first call of that name without a result.
"""

import json
from collections.abc import Sequence

from paceline_api_gateway.protocols.ollama.schema import MessageBody
from paceline_services.domain.generation import Message, ToolCall
from paceline_services.errors import InvalidRequestError


def to_messages(bodies: Sequence[MessageBody]) -> list[Message]:
    """The conversation; raises InvalidRequestError with the path of what cannot be read."""
    messages, unanswered = list[Message](), list[ToolCall]()
    for number, body in enumerate(bodies):
        if body.images:
            where = f"messages[{number}].images"
            raise InvalidRequestError(f"{where}: images are not supported: only text is", param=where)
        message = _to_result(body, unanswered) if body.role == "tool" else _to_message(number, body)
        unanswered += message.tool_calls
        messages.append(message)
    return messages


def _to_message(number: int, body: MessageBody) -> Message:
    calls = [
        ToolCall(
            id=call.id or f"call_{number}_{index}",
            name=call.function.name,
            arguments_json=json.dumps(call.function.arguments or {}, ensure_ascii=False),
        )
        for index, call in enumerate(body.tool_calls or ())
    ]
    return Message(body.role, body.content or "", tool_calls=tuple(calls), reasoning_text=body.thinking or "")


def _to_result(body: MessageBody, unanswered: list[ToolCall]) -> Message:
    """Takes the call that it answers out of those that have no answer."""
    call = next((one for one in unanswered if _is_answer(body, one)), None)
    if call is not None:
        unanswered.remove(call)
    return Message(
        role="tool",
        content=body.content or "",
        name=body.tool_name or (call.name if call else ""),
        tool_call_id=body.tool_call_id or (call.id if call else ""),
    )


def _is_answer(body: MessageBody, call: ToolCall) -> bool:
    if body.tool_call_id:
        return body.tool_call_id == call.id
    return not body.tool_name or body.tool_name == call.name
