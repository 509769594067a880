"""From the events of an answer to the events of a response, and to the response itself. Pure.

An answer is a row of output items: reasoning, messages, function calls. One is open at a time; what begins another one closes it. Ids of
items are made from the id of the answer: the same answer has the same ids.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson

from paceline_api_gateway.protocols.openai.responses.output import FunctionCall, Message, OpenItem, Reasoning
from paceline_api_gateway.protocols.openai.responses.schema import Json
from paceline_api_gateway.protocols.openai.responses.translate_request import Plan
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    TokenLogprob,
    ToolCallDelta,
)

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's own value."""


@dataclass(frozen=True, slots=True)
class Birth:
    """What a response has from the beginning."""

    answer_id: str
    created_at: int
    is_stored: bool = False

    @property
    def response_id(self) -> str:
        return f"resp_{self.answer_id}"


class ResponseWriter:
    """Follows one answer. Every method returns the events that are new; response is what they amount to."""

    def __init__(self, birth: Birth, plan: Plan) -> None:
        self.is_stored = birth.is_stored
        self._birth = birth
        self._plan = plan
        self._num_events = 0
        self._done: list[Json] = []
        self._open: OpenItem | None = None
        self._blank = ""
        """White space that begins a message if more text follows it."""
        self._logprobs: list[Json] = []
        """Of tokens whose text has not come yet."""
        self._finish: FinishReason | None = None
        self._status = "in_progress"
        self._error: Json | None = None
        self._usage: Json | None = None
        self._completed_at: int | None = None

    @property
    def response_id(self) -> str:
        return self._birth.response_id

    @property
    def status(self) -> str:
        return self._status

    @property
    def response(self) -> Json:
        """The response object as it is now."""
        is_cut = self._status == "incomplete"
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": self._birth.created_at,
            "status": self._status,
            "completed_at": self._completed_at,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self.output,
            "usage": self._usage,
            **self._plan.echo,
            "store": self.is_stored,
        }

    @property
    def output(self) -> list[Json]:
        return [*self._done, *([self._open.show("in_progress")] if self._open else ())]

    @property
    def _has_reply(self) -> bool:
        return any(item["type"] != "reasoning" for item in self.output)

    def wait_in_queue(self) -> None:
        """It begins later, in the background."""
        self._status = "queued"

    def begin(self) -> list[Json]:
        self._status = "in_progress"
        return [self._tell_response("response.created"), self._tell_response("response.in_progress")]

    def take(self, event: GenerationEvent) -> list[Json]:
        """The completed response has no event yet: end tells of it."""
        match event:
            case ChoiceDelta():
                return list(self._take_delta(event))
            case ChoiceFinished():
                self._finish = event.finish_reason
            case GenerationCompleted():
                self._usage = to_usage(event)
        return []

    def end(self, now: int) -> list[Json]:
        """The answer is whole."""
        is_cut = self._finish is FinishReason.LENGTH
        events: list[Json] = []
        if not (self._has_reply or (is_cut and self.output)):
            events = [*self._close("completed"), *self._open_message()]
        events += self._close("incomplete" if is_cut else "completed")
        self._status = "incomplete" if is_cut else "completed"
        self._completed_at = None if is_cut else now
        return [*events, self._tell_response(f"response.{self._status}")]

    def fail(self, error: Json) -> list[Json]:
        """It came to nothing; error is as describe_failure has it."""
        self._stop("failed")
        self._error = error
        return [self._tell_response("response.failed")]

    def cancel(self) -> None:
        self._stop("cancelled")

    def _stop(self, status: str) -> None:
        self._close("incomplete")
        self._status = status

    def _take_delta(self, delta: ChoiceDelta) -> Iterator[Json]:
        self._logprobs += [to_logprob(one) for one in delta.logprobs]
        if delta.reasoning_text:
            yield from self._add_reasoning(delta.reasoning_text)
        if delta.text:
            yield from self._add_text(delta.text)
        for part in delta.tool_calls:
            yield from self._add_call(part)

    def _add_reasoning(self, text: str) -> Iterator[Json]:
        self._logprobs.clear()
        if not isinstance(self._open, Reasoning):
            yield from self._close("completed")
            yield from self._begin(
                Reasoning(
                    self._item_id("rs"), has_summary=self._plan.has_summary, has_encrypted=self._plan.has_encrypted
                )
            )
        assert self._open is not None
        yield self._number(self._open.add(text))

    def _add_text(self, text: str) -> Iterator[Json]:
        if not isinstance(self._open, Message):
            self._blank += text
            if not self._blank.strip():
                return
            text, self._blank = self._blank, ""
            yield from self._close("completed")
            yield from self._open_message()
        assert isinstance(self._open, Message)
        yield self._number(self._open.add(text, self._take_logprobs()))

    def _add_call(self, part: ToolCallDelta) -> Iterator[Json]:
        self._logprobs.clear()
        self._blank = ""
        if part.name or part.id or not isinstance(self._open, FunctionCall):
            yield from self._close("completed")
            call_id = part.id or f"call_{self._birth.answer_id}{part.index}"
            yield from self._begin(FunctionCall(self._item_id("fc"), call_id, part.name))
        if part.arguments_json:
            assert self._open is not None
            yield self._number(self._open.add(part.arguments_json))

    def _open_message(self) -> list[Json]:
        """A message, with the white space that was held back."""
        events = self._begin(Message(self._item_id("msg"), has_logprobs=self._plan.has_logprobs))
        if self._blank:
            assert isinstance(self._open, Message)
            events.append(self._number(self._open.add(self._blank, self._take_logprobs())))
            self._blank = ""
        return events

    def _begin(self, item: OpenItem) -> list[Json]:
        self._open = item
        return [self._number(event) for event in item.begin(len(self._done))]

    def _close(self, status: str) -> list[Json]:
        """The open item is done."""
        if (item := self._open) is None:
            return []
        if isinstance(item, Message):
            item.logprobs += self._take_logprobs()
        events = [self._number(event) for event in item.end(status)]
        self._done.append(item.show(status))
        self._open = None
        return events

    def _take_logprobs(self) -> list[Json]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._birth.answer_id}{len(self._done) + (self._open is not None):02x}"

    def _tell_response(self, kind: str) -> Json:
        return self._number({"type": kind, "response": self.response})

    def _number(self, event: Json) -> Json:
        event["sequence_number"] = self._num_events
        self._num_events += 1
        return event


def write_event(event: Json) -> str:
    """One server-sent event."""
    return f"event: {event['type']}\ndata: {orjson.dumps(event).decode()}\n\n"


def write_events(events: Iterable[Json]) -> str:
    return "".join(write_event(event) for event in events)


def to_logprob(logprob: TokenLogprob) -> Json:
    return _show_token(logprob) | {"top_logprobs": [_show_token(one) for one in logprob.top]}


def _show_token(logprob: TokenLogprob) -> Json:
    value = logprob.logprob if math.isfinite(logprob.logprob) else LEAST_LOGPROB
    return {"token": logprob.text, "bytes": list(logprob.token_bytes), "logprob": value}


def to_usage(completed: GenerationCompleted) -> Json:
    prompt, answer = completed.num_prompt_tokens, completed.num_completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": completed.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": completed.num_reasoning_tokens},
        "total_tokens": prompt + answer,
    }
