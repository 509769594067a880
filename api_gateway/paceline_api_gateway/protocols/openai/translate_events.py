"""Canonical events -> chunks and bodies of chat completions. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline_api_gateway.generation.answer import Answer, ChoiceAnswer
from paceline_api_gateway.protocols.openai.content_logprobs import ContentLogprobs
from paceline_api_gateway.protocols.openai.wire import (
    Envelope,
    Json,
    to_finish_reason,
    to_logprob,
    to_usage,
    write_event,
    write_text,
)
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerationCompleted,
    GenerationEvent,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

BODY = "chat.completion"
CHUNK = "chat.completion.chunk"
_MARK = "\0"
"""Stands for the text of a delta in a chunk that is made ahead; no id or name of a model has it."""


@dataclass(frozen=True, slots=True)
class ChatForm:
    """What a client asked to be told, and how."""

    num_choices: int = 1
    has_usage: bool = False
    has_logprobs: bool = False
    has_token_ids: bool = False
    is_legacy: bool = False
    """Calls are told as function_call."""
    may_call: bool = False
    """The answer may be calls alone, without content: clients take an empty content for text."""


class ChunkWriter:
    """Writes the chunks of one answer as server-sent events.

    There is a chunk for each token: what all of a choice's have in common is written once, and their text set into it.
    """

    def __init__(self, envelope: Envelope, form: ChatForm) -> None:
        self._envelope = envelope
        self._form = form
        self._frames: dict[tuple[int, str], tuple[str, str]] = {}
        self._logprobs = [ContentLogprobs() for _ in range(form.num_choices)]
        self._is_whole = form.has_logprobs or form.has_token_ids

    def begin(self) -> str:
        """Every choice's role."""
        delta = {"role": "assistant", "content": None if self._form.may_call else "", "refusal": None}
        return "".join(self._write(index, delta) for index in range(self._form.num_choices))

    def write_delta(self, delta: ChoiceDelta) -> str:
        """One chunk or several; none where nothing is to be told."""
        if self._is_whole or delta.tool_calls:
            return "".join(self._write_whole(delta))
        index, text = delta.choice_index, ""
        if delta.reasoning_text:
            text = self._set_in(index, "reasoning_content", delta.reasoning_text)
        return text + self._set_in(index, "content", delta.text) if delta.text else text

    def finish(self, event: ChoiceFinished) -> str:
        index, text = event.choice_index, ""
        if self._form.has_logprobs and (left := self._logprobs[index].end()):
            text = self._write(index, {"content": ""}, _to_logprobs(left))
        reason = to_finish_reason(event.finish_reason, is_legacy=self._form.is_legacy)
        return text + self._write(index, {}, finish_reason=reason)

    def complete(self, event: GenerationCompleted) -> str:
        """The chunk with usage, where it was asked for."""
        if not self._form.has_usage:
            return ""
        return write_event(self._envelope.wrap(CHUNK, []) | {"usage": to_usage(event)})

    def _write_whole(self, delta: ChoiceDelta) -> Iterator[str]:
        logprobs = self._logprobs[delta.choice_index].take(delta) if self._form.has_logprobs else []
        token_ids = delta.token_ids if self._form.has_token_ids else ()
        for part in self._list_parts(delta, is_silent=not (logprobs or token_ids)):
            told = _to_logprobs(logprobs) if logprobs and "content" in part else None
            yield self._write(delta.choice_index, part, told, token_ids=token_ids if self._form.has_token_ids else None)
            token_ids = ()

    def _list_parts(self, delta: ChoiceDelta, *, is_silent: bool) -> list[Json]:
        """What is told of a delta: thinking, then text, then calls."""
        parts: list[Json] = [{"reasoning_content": delta.reasoning_text}] if delta.reasoning_text else []
        if delta.text:
            parts.append({"content": delta.text})
        for call in delta.tool_calls:
            parts.extend(_write_legacy_call(call) if self._form.is_legacy else _write_call(call))
        return parts or ([] if is_silent else [{"content": ""}])

    def _write(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        *,
        finish_reason: str | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> str:
        choice: Json = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        if token_ids is not None:
            choice["token_ids"] = token_ids
        body = self._envelope.wrap(CHUNK, [choice])
        return write_event(body | {"usage": None} if self._form.has_usage else body)

    def _set_in(self, index: int, field: str, text: str) -> str:
        frame = self._frames.get((index, field))
        if frame is None:
            before, after = self._write(index, {field: _MARK}).split(write_text(_MARK))
            frame = self._frames[index, field] = before, after
        return f"{frame[0]}{write_text(text)}{frame[1]}"


def _write_call(call: ToolCallDelta) -> Iterator[Json]:
    """Its name first, then its arguments, as OpenAI has it."""
    if call.id or call.name:
        function = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": call.index, "id": call.id, "type": "function", "function": function}]}
    if call.arguments_json:
        yield {"tool_calls": [{"index": call.index, "function": {"arguments": call.arguments_json}}]}


def _write_legacy_call(call: ToolCallDelta) -> Iterator[Json]:
    if call.id or call.name:
        yield {"function_call": {"name": call.name, "arguments": ""}}
    if call.arguments_json:
        yield {"function_call": {"arguments": call.arguments_json}}


def _to_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    return {"content": [to_logprob(one) for one in logprobs], "refusal": None}


class WholeAnswer:
    """An answer as far as it has come, and the log probabilities of its content."""

    def __init__(self, form: ChatForm) -> None:
        self.answer = Answer.of(form.num_choices)
        self._has_logprobs = form.has_logprobs
        self._sorted = [ContentLogprobs() for _ in range(form.num_choices)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(form.num_choices)]

    def take(self, event: GenerationEvent) -> None:
        self.answer.add(event)
        if self._has_logprobs and isinstance(event, ChoiceDelta):
            self._logprobs[event.choice_index].extend(self._sorted[event.choice_index].take(event))

    def list_logprobs(self, index: int) -> list[TokenLogprob]:
        """Those of a choice, once all of it has come."""
        return self._logprobs[index] + self._sorted[index].end()


def to_response(whole: WholeAnswer, envelope: Envelope, form: ChatForm) -> Json:
    """The whole answer as one body."""
    choices = []
    for index, choice in enumerate(whole.answer.choices):
        described: Json = {
            "index": index,
            "message": _to_message(choice, is_legacy=form.is_legacy),
            "logprobs": _to_logprobs(whole.list_logprobs(index)) if form.has_logprobs else None,
            "finish_reason": to_finish_reason(choice.finish_reason, is_legacy=form.is_legacy),
        }
        choices.append(described | ({"token_ids": choice.token_ids} if form.has_token_ids else {}))
    return envelope.wrap(BODY, choices) | {"usage": to_usage(whole.answer.usage)}


def _to_message(choice: ChoiceAnswer, *, is_legacy: bool) -> Json:
    has_content = choice.text or not choice.tool_calls
    message: Json = {"role": "assistant", "content": choice.text if has_content else None, "refusal": None}
    if choice.reasoning_text:
        message["reasoning_content"] = choice.reasoning_text
    if choice.tool_calls and is_legacy:
        message["function_call"] = _to_function(choice.tool_calls[0])
    elif choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _to_function(call)} for call in choice.tool_calls
        ]
    return message


def _to_function(call: ToolCall) -> Json:
    return {"name": call.name, "arguments": call.arguments_json}
