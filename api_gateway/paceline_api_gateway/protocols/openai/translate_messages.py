"""Messages of a chat -> those of a canonical conversation. Pure.

Order is checked as OpenAI checks it: a tool's message answers a call of the assistant's message before it, and every call is answered.
"""

from collections.abc import Sequence

from paceline_api_gateway.protocols.openai.schema_chat import MessageBody, ToolCallBody
from paceline_services.domain.generation import Message, ToolCall
from paceline_services.errors import InvalidRequestError

_ROLES = {"developer": "system", "function": "tool"}
_NEEDS_CONTENT = frozenset({"system", "developer", "user", "tool"})


def to_messages(bodies: Sequence[MessageBody]) -> tuple[Message, ...]:
    """One for each. Raises InvalidRequestError with the path of what cannot be used."""
    call_ids: dict[str, str] = {}  # of deprecated function calls, which have no ids: of each function, its latest
    messages = tuple(_to_message(index, body, call_ids) for index, body in enumerate(bodies))
    _check_order(bodies)
    return messages


def _to_message(index: int, body: MessageBody, call_ids: dict[str, str]) -> Message:
    where = f"messages[{index}]"
    if body.audio is not None:
        raise _refusal(f"{where}.audio", "audio is not supported: only text is")
    calls = tuple(_to_call(f"{where}.tool_calls[{number}]", call) for number, call in enumerate(body.tool_calls or ()))
    if body.function_call is not None:
        call_ids[body.function_call.name] = f"call_{index}"
        calls += (ToolCall(f"call_{index}", body.function_call.name, body.function_call.arguments or "{}"),)
    answered = call_ids.get(body.name or "", "") if body.role == "function" else body.tool_call_id or ""
    return Message(
        role=_ROLES.get(body.role, body.role),
        content=_to_text(where, body),
        name=body.name or "",
        tool_calls=calls,
        tool_call_id=answered,
        reasoning_text=body.reasoning_content or (body.reasoning if isinstance(body.reasoning, str) else ""),
    )


def _to_call(where: str, call: ToolCallBody) -> ToolCall:
    if call.type != "function" or call.function is None:
        raise _refusal(f"{where}.type", f"a call of type {call.type!r} is not supported: only 'function' is")
    return ToolCall(call.id, call.function.name, call.function.arguments or "{}")


def _to_text(where: str, body: MessageBody) -> str:
    if body.content is None:
        if body.role in _NEEDS_CONTENT:
            raise _refusal(
                f"{where}.content", f"a message of role {body.role!r} needs content: a text or a list of parts"
            )
        return body.refusal or ""
    texts = []
    for number, part in enumerate(body.content):
        text = part.refusal if part.type == "refusal" and body.role == "assistant" else part.text
        if text is None or part.type not in {"text", "refusal"}:
            param = f"{where}.content[{number}]"
            raise InvalidRequestError(
                f"{param}: content of type {part.type!r} is not supported: only text is",
                param=param,
                reason="UNSUPPORTED_VALUE",
            )
        texts.append(text)
    return "".join(texts)


def _check_order(bodies: Sequence[MessageBody]) -> None:
    asked: list[str] = []
    """Ids of the calls of the latest assistant's message."""
    open_ids: set[str] = set()
    for index, body in enumerate(bodies):
        where = f"messages[{index}]"
        if body.role == "tool":
            _check_answer(where, body, asked)
            open_ids.discard(body.tool_call_id or "")
            continue
        _check_answered(where, open_ids)
        asked = [call.id for call in body.tool_calls or ()] if body.role == "assistant" else []
        open_ids = set(asked)
    _check_answered(f"messages[{len(bodies) - 1}]", open_ids)


def _check_answer(where: str, body: MessageBody, asked: Sequence[str]) -> None:
    if not asked:
        raise _refusal(f"{where}.role", "a message of role 'tool' must follow a message with tool_calls")
    if body.tool_call_id not in asked:
        what = "is missing" if body.tool_call_id is None else f"{body.tool_call_id!r} is none of the calls before it"
        raise _refusal(f"{where}.tool_call_id", what)


def _check_answered(where: str, open_ids: set[str]) -> None:
    if open_ids:
        names = ", ".join(sorted(open_ids))
        raise _refusal(where, f"messages of role 'tool' must answer every call before it: {names} has no answer")


def _refusal(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}", param=param)
