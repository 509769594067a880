"""Canonical events and answers -> Ollama's objects, one to a line. Pure but for the clock that it is given.

There is a line for each token: what they have in common is written once, and their text and time set into it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii as quote  # ASCII only: clients split lines at U+2028 and its like
from typing import Any

from paceline_api_gateway.generation.answer import Answer
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from paceline_services.errors import InternalError

Json = dict[str, Any]
Clock = Callable[[], int]
"""Nanoseconds since 1970."""

_NS_PER_S = 10**9
_NS_PER_MS = 10**6


@dataclass(slots=True)
class Stamper:
    """Writes the time now, as created_at has it."""

    clock: Clock = time.time_ns
    _second: int = -1
    _text: str = ""

    def write(self) -> str:
        second, rest = divmod(self.clock(), _NS_PER_S)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{rest:09d}Z"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every line of one answer says. is_chat: message has the text, else response."""

    model: str
    is_chat: bool
    start_ns: int
    stamper: Stamper = field(default_factory=Stamper)

    def describe(self, text: str, thinking: str = "", calls: Sequence[Json] = ()) -> Json:
        """An object that has so much of the answer and is not the last."""
        extra = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": list(calls)} if calls else {})
        head: Json = {"model": self.model, "created_at": self.stamper.write()}
        if self.is_chat:
            return head | {"message": {"role": "assistant", "content": text} | extra, "done": False}
        return head | {"response": text} | extra | {"done": False}

    def end(self, reason: str, metrics: Json) -> Json:
        """What the last object has beside the text."""
        return {"done": True, "done_reason": reason} | metrics


class LineWriter:
    """Writes the lines of one answer."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._finished: ChoiceFinished | None = None
        self._calls = CallGatherer()
        self._before, self._between, self._after = _make_frame(envelope)

    def write(self, event: GenerationEvent) -> str:
        """The lines for an event; empty where there is nothing to tell yet."""
        match event:
            case ChoiceDelta(reasoning_text="", tool_calls=(), logprobs=()):
                return self._write_text(event.text) if event.text else ""
            case ChoiceDelta():
                return self._write_delta(event)
            case ChoiceFinished():
                self._finished = event
                calls, text = self._calls.end()
                return write_line(self._envelope.describe(text, "", calls)) if calls or text else ""
            case GenerationCompleted():
                return self._write_end(event)
            case _:
                return ""

    def _write_text(self, text: str) -> str:
        return f"{self._before}{self._envelope.stamper.write()}{self._between}{quote(text)}{self._after}"

    def _write_delta(self, delta: ChoiceDelta) -> str:
        """Thinking, text and calls of one delta are one object, as Ollama's are."""
        calls = self._calls.take(delta.tool_calls)
        if not (delta.text or delta.reasoning_text or calls or delta.logprobs):
            return ""
        line = self._envelope.describe(delta.text, delta.reasoning_text, calls)
        return write_line(line | to_logprobs(delta.logprobs))

    def _write_end(self, event: GenerationCompleted) -> str:
        if self._finished is None:
            raise InternalError("the head ended an answer before all of its choices")
        metrics = to_metrics(event, self._envelope.stamper.clock() - self._envelope.start_ns)
        return write_line(self._envelope.describe("") | self._envelope.end(to_reason(self._finished), metrics))


class CallGatherer:
    """Makes whole calls of their parts: Ollama's arguments are an object, never a text."""

    def __init__(self) -> None:
        self._num_told = 0
        self._index = -1
        self._open: ToolCall | None = None

    def take(self, deltas: Sequence[ToolCallDelta]) -> list[Json]:
        """The calls that are whole now."""
        calls = list[Json]()
        for delta in deltas:
            if delta.index != self._index:
                calls += self.end()[0]
                self._index, self._open = delta.index, ToolCall(delta.id, delta.name, "")
            if self._open is not None:
                self._open = replace(self._open, arguments_json=self._open.arguments_json + delta.arguments_json)
                calls += self._tell(_read_object(self._open.arguments_json))
        return calls

    def end(self) -> tuple[list[Json], str]:
        """The last call where it has no arguments, and the text of one that was cut off."""
        text = self._open.arguments_json if self._open else ""
        return ([], text) if text else (self._tell({}), "")

    def _tell(self, arguments: Json | None) -> list[Json]:
        if self._open is None or arguments is None:
            return []
        call, self._open = self._open, None
        self._num_told += 1
        return [_describe_call(self._num_told - 1, call, arguments)]


def write_line(body: Json) -> str:
    """One line, in ASCII."""
    return json.dumps(body, separators=(",", ":")) + "\n"


def to_answer(answer: Answer, envelope: Envelope) -> Json:
    """The whole answer."""
    choice = answer.choices[0]
    if choice.finished is None:
        raise InternalError("the head ended an answer before all of its choices")
    calls, text = list[Json](), choice.text
    for number, call in enumerate(choice.tool_calls):
        arguments = _read_object(call.arguments_json or "{}")
        if arguments is None:
            text += call.arguments_json
        else:
            calls.append(_describe_call(number, call, arguments))
    metrics = to_metrics(answer.usage, envelope.stamper.clock() - envelope.start_ns)
    body = envelope.describe(text, choice.reasoning_text, calls) | to_logprobs(choice.logprobs)
    return body | envelope.end(to_reason(choice.finished), metrics)


def to_reason(finished: ChoiceFinished) -> str:
    return "length" if finished.finish_reason is FinishReason.LENGTH else "stop"


def to_metrics(completed: GenerationCompleted, total_ns: int) -> Json:
    """Durations in nanoseconds, at least 1, as clients divide by them; load_duration is the time before the head admitted the request."""
    prompt_ns = round(completed.time_to_first_token_ms * _NS_PER_MS)
    head_ns = round(completed.total_duration_ms * _NS_PER_MS)
    return {
        "total_duration": max(1, total_ns),
        "load_duration": max(1, total_ns - head_ns),
        "prompt_eval_count": completed.num_prompt_tokens,
        "prompt_eval_duration": max(1, prompt_ns),
        "eval_count": completed.num_completion_tokens,
        "eval_duration": max(1, head_ns - prompt_ns),
    }


def to_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    if not logprobs:
        return {}
    return {
        "logprobs": [
            _to_logprob(one) | ({"top_logprobs": [_to_logprob(other) for other in one.top]} if one.top else {})
            for one in logprobs
        ]
    }


def _to_logprob(one: TokenLogprob) -> Json:
    return {"token": one.text, "logprob": max(one.logprob, -9999.0), "bytes": list(one.token_bytes)}


def _describe_call(number: int, call: ToolCall, arguments: Json) -> Json:
    function = {"index": number, "name": call.name, "arguments": arguments}
    return ({"id": call.id} if call.id else {}) | {"function": function}


def _read_object(arguments_json: str) -> Json | None:
    """None where it is no whole object yet."""
    if not arguments_json.rstrip().endswith("}"):
        return None
    try:
        arguments = json.loads(arguments_json, parse_constant=_refuse_constant)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _make_frame(envelope: Envelope) -> tuple[str, str, str]:
    """What stands before the time, between it and the text, and after the text, in a line that has only text."""
    before = f'{{"model":{quote(envelope.model)},"created_at":"'
    if envelope.is_chat:
        return before, '","message":{"role":"assistant","content":', '},"done":false}\n'
    return before, '","response":', ',"done":false}\n'
