"""Claude's turns -> messages of a conversation. Pure.

Claude's turns hold blocks: a user's turn may bring results of several tools beside text, an assistant's thinking, text and calls.
Blocks of text in one turn, and turns of one role that follow each other, become one message.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

from paceline_api_gateway.protocols.anthropic.schema import (
    Block,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    TurnBody,
    UnreadableBlock,
)
from paceline_services.domain.generation import Message, ToolCall
from paceline_services.errors import InvalidRequestError

T = TypeVar("T")

_SEPARATOR = "\n"
"""Between blocks of text of one turn."""
_TURN_SEPARATOR = "\n\n"
"""Between turns that become one."""


def to_messages(system: str | Sequence[TextBlock | UnreadableBlock] | None, turns: Sequence[TurnBody]) -> list[Message]:
    """The conversation; raises InvalidRequestError with the path of what cannot be read."""
    messages = [Message("system", text)] if (text := _to_text(system, "system")) else []
    tool_names: dict[str, str] = {}
    for number, turn in enumerate(turns):
        for message in _read_turn(turn, f"messages[{number}].content", tool_names):
            if messages and _belong_together(messages[-1], message):
                messages[-1] = _join(messages[-1], message)
            else:
                messages.append(message)
    return messages


def continues_last(turns: Sequence[TurnBody], messages: Sequence[Message]) -> bool:
    """Whether the answer goes on with the text of the last message. Raises InvalidRequestError where it calls tools."""
    if turns[-1].role != "assistant" or not messages or messages[-1].role != "assistant":
        return False
    if messages[-1].tool_calls:
        where = f"messages[{len(turns) - 1}]"
        raise InvalidRequestError(
            f"{where}: it calls tools, so their results must follow in a user's message", param=where
        )
    return True


def _read_turn(turn: TurnBody, where: str, tool_names: dict[str, str]) -> list[Message]:
    blocks = [TextBlock(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    if turn.role == "assistant":
        return _read_assistant(blocks, where, tool_names)
    results, texts = list[Message](), list[str]()
    for path, block in _number(blocks, where):
        if isinstance(block, ToolResultBlock) and turn.role == "user":
            name = tool_names.get(block.tool_use_id, "")
            results.append(Message("tool", _read_result(block, path), name, tool_call_id=block.tool_use_id))
        else:
            texts.append(_read_text(block, path, turn.role))
    return [*results, Message(turn.role, _SEPARATOR.join(texts))] if texts or not results else results


def _read_result(block: ToolResultBlock, path: str) -> str:
    text = _to_text(block.content, f"{path}.content")
    return f"Error: {text}" if block.is_error and not text.lower().startswith("error") else text


def _read_assistant(blocks: Sequence[Block], where: str, tool_names: dict[str, str]) -> list[Message]:
    """One message; none for a turn without anything in it, which asks for an answer as no turn does."""
    texts, thoughts, calls = list[str](), list[str](), list[ToolCall]()
    for path, block in _number(blocks, where):
        match block:
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case RedactedThinkingBlock():
                continue
            case ToolUseBlock():
                calls.append(ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False)))
                tool_names[block.id] = block.name
            case _:
                texts.append(_read_text(block, path, "assistant"))
    message = Message(
        "assistant", "".join(texts), tool_calls=tuple(calls), reasoning_text=_SEPARATOR.join(filter(None, thoughts))
    )
    return [message] if message.content or message.tool_calls else []


def _read_text(block: Block, path: str, role: str) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, UnreadableBlock):
        raise InvalidRequestError(
            f"{path}: content of type {block.type[:40]!r} is not supported: only text is", param=path
        )
    raise InvalidRequestError(f"{path}: {block.type} does not belong in a message of role {role!r}", param=path)


def _to_text(content: str | Sequence[TextBlock | UnreadableBlock] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return _SEPARATOR.join(_read_text(block, path, "") for path, block in _number(content, where))


def _number(blocks: Iterable[T], where: str) -> list[tuple[str, T]]:
    return [(f"{where}[{number}]", block) for number, block in enumerate(blocks)]


def _belong_together(before: Message, after: Message) -> bool:
    return before.role == after.role and before.role in {"user", "assistant"} and not before.tool_calls


def _join(before: Message, after: Message) -> Message:
    return Message(
        role=before.role,
        content=_TURN_SEPARATOR.join(filter(None, (before.content, after.content))),
        tool_calls=after.tool_calls,
        reasoning_text=_SEPARATOR.join(filter(None, (before.reasoning_text, after.reasoning_text))),
    )
