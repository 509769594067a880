"""Canonical events and answers -> Claude's messages and server-sent events. Pure.

A stream is message_start, then each block as content_block_start, deltas and content_block_stop, then message_delta and message_stop.
There is an event for each token: what all of a block's have in common is written once, and their text set into it.
"""

import json
from dataclasses import dataclass
from hashlib import blake2b
from json.encoder import encode_basestring_ascii as quote  # ASCII only: some clients split lines at U+2028 and its like
from typing import Any

from paceline_api_gateway.generation.answer import Answer, ChoiceAnswer
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    ToolCall,
    ToolCallDelta,
)
from paceline_services.errors import InternalError

Json = dict[str, Any]

PING = 'event: ping\ndata: {"type": "ping"}\n\n'


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer must know of its request. max_tokens: how many it may have; shows_thinking: whether there are blocks of it;
    hides_thinking: whether those are empty."""

    message_id: str
    model: str
    max_tokens: int
    shows_thinking: bool = False
    hides_thinking: bool = False


class EventWriter:
    """Writes the events of one answer, in Claude's order."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._finished: ChoiceFinished | None = None
        self._num_calls = 0
        self._index = -1
        self._kind = ""
        """Of the open block; empty between blocks."""
        self._before = self._after = ""
        """What is around the text in a delta of the open block."""
        self._thoughts = blake2b(digest_size=32)

    def write(self, event: GenerationEvent) -> str:
        """The text for an event; empty where there is nothing to tell yet."""
        match event:
            case ChoiceDelta():
                return self._write_delta(event)
            case GenerationStarted():
                return self._write_start(event)
            case ChoiceFinished():
                self._finished = event
                return self._close()
            case GenerationCompleted():
                return self._write_end(event)
            case _:
                return ""

    def _write_start(self, event: GenerationStarted) -> str:
        usage = to_usage(GenerationCompleted(event.num_prompt_tokens, 0))
        message = _write_message(self._envelope, [], None, None, usage)
        return write_event("message_start", {"message": message})

    def _write_delta(self, delta: ChoiceDelta) -> str:
        parts = ""
        if delta.reasoning_text and self._envelope.shows_thinking:
            parts = self._write_thinking(delta.reasoning_text)
        if delta.text:
            parts += self._open("text") + self._before + quote(delta.text) + self._after
        for call in delta.tool_calls:
            parts += self._write_call(call)
        return parts

    def _write_thinking(self, text: str) -> str:
        self._thoughts.update(text.encode())
        opened = self._open("thinking")
        return opened if self._envelope.hides_thinking else opened + self._before + quote(text) + self._after

    def _write_call(self, call: ToolCallDelta) -> str:
        opened = ""
        if call.index == self._num_calls:
            self._num_calls += 1
            opened = self._close() + self._open("tool_use", _write_call_block(ToolCall(call.id, call.name, "")))
        return opened + (self._before + quote(call.arguments_json) + self._after if call.arguments_json else "")

    def _open(self, kind: str, block: Json | None = None) -> str:
        """What begins a block of the kind; empty where one is open."""
        if self._kind == kind:
            return ""
        closed = self._close()
        self._index += 1
        self._kind = kind
        delta, name = _DELTAS[kind]
        before = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":"{delta}","{name}":'
        self._before, self._after = f"event: content_block_delta\ndata: {before}", "}}\n\n"
        started = write_event("content_block_start", {"index": self._index, "content_block": block or _EMPTY[kind]})
        return closed + started + (PING if self._index == 0 else "")

    def _close(self) -> str:
        if not self._kind:
            return ""
        signed = ""
        if self._kind == "thinking":
            delta = {"type": "signature_delta", "signature": self._thoughts.hexdigest()}
            signed = write_event("content_block_delta", {"index": self._index, "delta": delta})
        self._kind = ""
        return signed + write_event("content_block_stop", {"index": self._index})

    def _write_end(self, event: GenerationCompleted) -> str:
        if self._finished is None:
            raise InternalError("the head ended an answer before all of its choices")
        reason, sequence = to_stop(self._finished, self._envelope.max_tokens, has_calls=self._num_calls > 0)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ended = write_event("message_delta", {"delta": delta, "usage": to_usage(event)})
        return ended + write_event("message_stop", {})


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""The type of a block's deltas, and the field that they have."""
_EMPTY: dict[str, Json] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


def write_event(name: str, body: Json) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name} | body, separators=(',', ':'))}\n\n"


def to_message(answer: Answer, envelope: Envelope) -> Json:
    """The whole answer."""
    choice = answer.choices[0]
    if choice.finished is None:
        raise InternalError("the head ended an answer before all of its choices")
    reason, sequence = to_stop(choice.finished, envelope.max_tokens, has_calls=bool(choice.tool_calls))
    return _write_message(envelope, _write_blocks(choice, envelope), reason, sequence, to_usage(answer.usage))


def to_usage(completed: GenerationCompleted) -> Json:
    """As Claude counts: input_tokens are those that were not read from a cache."""
    usage: Json = {
        "input_tokens": completed.num_prompt_tokens - completed.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": completed.num_cached_tokens,
        "output_tokens": completed.num_completion_tokens,
    }
    if completed.num_reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": completed.num_reasoning_tokens}
    return usage


def to_stop(finished: ChoiceFinished, max_tokens: int, *, has_calls: bool) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if finished.finish_reason is FinishReason.LENGTH:
        return ("max_tokens" if finished.num_tokens >= max_tokens else "model_context_window_exceeded"), None
    if finished.stop_text:
        return "stop_sequence", finished.stop_text
    return ("tool_use" if has_calls or finished.finish_reason is FinishReason.TOOL_CALLS else "end_turn"), None


def _write_message(
    envelope: Envelope, content: list[Json], stop_reason: str | None, stop_sequence: str | None, usage: Json
) -> Json:
    return {
        "id": envelope.message_id,
        "type": "message",
        "role": "assistant",
        "model": envelope.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage | {"service_tier": "standard"},
    }


def _write_blocks(choice: ChoiceAnswer, envelope: Envelope) -> list[Json]:
    blocks = list[Json]()
    if choice.reasoning_text and envelope.shows_thinking:
        thinking = "" if envelope.hides_thinking else choice.reasoning_text
        signature = blake2b(choice.reasoning_text.encode(), digest_size=32).hexdigest()
        blocks.append({"type": "thinking", "thinking": thinking, "signature": signature})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    return blocks + [_write_call_block(call) for call in choice.tool_calls]


def _write_call_block(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": _read_arguments(call.arguments_json)}


def _read_arguments(arguments_json: str) -> Json:
    """Empty where a call was cut off: stop_reason says so."""
    try:
        arguments = json.loads(arguments_json, parse_constant=_refuse_constant)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
