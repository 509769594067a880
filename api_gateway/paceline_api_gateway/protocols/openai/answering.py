"""How answers reach OpenAI's clients, whole or as a stream, for chat completions and completions alike. Effects."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Protocol

import orjson
from fastapi.responses import Response

from paceline_api_gateway.faults import to_fault
from paceline_api_gateway.protocols.openai.errors import rename_fields, write_fault
from paceline_api_gateway.protocols.openai.translate_completions import JoinedAnswers
from paceline_api_gateway.protocols.openai.wire import DONE, Json, write_event
from paceline_api_gateway.serving import OpenAnswer
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.errors import InvalidRequestError, PacelineError

NUM_SIDE_BY_SIDE = 16
"""Prompts of one request that are under way at once; others wait, so that a long list takes not all of a head's queue."""
_QUEUE_LENGTH = 64


class JsonAnswer(Response):
    """A body of JSON that is known to be right: nothing checks it again."""

    media_type = "application/json"

    def render(self, content: Json) -> bytes:
        return orjson.dumps(content)


class EventWriter(Protocol):
    """Writes a kind of answer as server-sent events; any text may be empty."""

    def begin(self) -> str: ...
    def write_delta(self, delta: ChoiceDelta, /) -> str: ...
    def finish(self, event: ChoiceFinished, /) -> str: ...
    def complete(self, event: GenerationCompleted, /) -> str: ...


async def write_stream(events: AsyncIterable[GenerationEvent], writer: EventWriter) -> AsyncGenerator[str, None]:
    """Server-sent events of one answer; ends with [DONE] whatever happens."""
    try:
        async for event in events:
            if text := _write(event, writer):
                yield text
    except PacelineError as error:
        yield write_event(write_fault(to_fault(rename_fields(error))))
    yield DONE


def _write(event: GenerationEvent, writer: EventWriter) -> str:
    match event:
        case ChoiceDelta():  # first, as nearly all are
            return writer.write_delta(event)
        case ChoiceFinished():
            return writer.finish(event)
        case GenerationStarted():
            return writer.begin()
        case GenerationCompleted():
            return writer.complete(event)
    return ""


@contextmanager
def naming_fields() -> Iterator[None]:
    """What the block raises of a head about a field has that field's name here."""
    try:
        yield
    except InvalidRequestError as error:
        raise rename_fields(error) from error


async def join_answers(
    open_answer: Callable[[int], OpenAnswer], num_answers: int, joined: JoinedAnswers
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of several answers, some of them side by side, as those of one. The first error ends all."""
    parts = _follow(open_answer(0)) if num_answers == 1 else _merge(open_answer, num_answers)
    async with aclosing(parts):
        async for number, event in parts:
            for one in joined.take(number, event):
                yield one


Numbered = tuple[int, GenerationEvent]


async def _follow(answer: OpenAnswer, number: int = 0) -> AsyncGenerator[Numbered, None]:
    try:
        async for event in answer:
            yield number, event
    finally:
        await answer.aclose()


async def _merge(open_answer: Callable[[int], OpenAnswer], num_answers: int) -> AsyncGenerator[Numbered, None]:
    queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue(_QUEUE_LENGTH)
    numbers = iter(range(num_answers))

    async def work() -> None:
        try:
            for number in numbers:
                async with aclosing(_follow(open_answer(number), number)) as events:
                    async for item in events:
                        await queue.put(item)
            await queue.put(None)
        except Exception as error:  # whatever it is, whoever waits for this answer is to hear of it
            await queue.put(error)

    workers = [asyncio.create_task(work()) for _ in range(min(NUM_SIDE_BY_SIDE, num_answers))]
    try:
        async for item in _take_until_ended(queue, len(workers)):
            yield item
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _take_until_ended(
    queue: asyncio.Queue[Numbered | Exception | None], num_workers: int
) -> AsyncIterator[Numbered]:
    while num_workers:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            num_workers -= 1
        else:
            yield item
