"""POST /v1/trifurcate: three requests side by side. Effects only."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.connection import until_gone
from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.faults import WriteFault
from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.openapi import describe_faults, show_examples
from paceline_api_gateway.protocols.trifurcate.schema import TrifurcateRequest
from paceline_api_gateway.protocols.trifurcate.translate import (
    Heading,
    Json,
    Outcome,
    Role,
    read_verdict,
    show_role,
    to_requests,
    write_event,
    write_trifurcation,
)
from paceline_api_gateway.serving import Caller, Named, OpenAnswer, Serving, read_caller
from paceline_services.domain.generation import ChoiceDelta
from paceline_services.errors import PacelineError

_EXAMPLE: Json = {
    "models": {"main": "qwen2.5-7b-instruct", "validator": "qwen2.5-1.5b", "speculative": "smollm2-135m-instruct"},
    "prompt": "What is a paceline?",
}
_MAX_UNREAD = 256
"""Texts of a role that wait until those before them were sent; then its head waits."""


def make_router(serving: Serving, write_fault: WriteFault) -> APIRouter:
    router = APIRouter(tags=["Trifurcated inference"], responses=describe_faults(write_fault))
    example = show_examples(three_models=_EXAMPLE)

    @router.post("/v1/trifurcate", summary="Answer with three roles side by side", openapi_extra=example)
    async def trifurcate(body: TrifurcateRequest, caller: Annotated[Caller, Depends(read_caller)]) -> Response:
        """Validator (-1), main (0) and speculative (+1) answer at once; balance is the sum of the signs of those that did."""
        named = {role: serving.name(request, caller) for role, request in to_requests(body).items()}
        main = named[Role.MAIN]
        heading = Heading(main.answer_id, int(time.time()))
        headers = {"X-Request-Id": main.request.request_id}
        threads = {role: _Thread(serving.open(one.request, caller), one) for role, one in named.items()}
        if body.stream:
            answer = threads[Role.MAIN].answer
            return AnswerResponse(_tell(heading, threads), answer, headers, SERVER_SENT_EVENTS)
        try:
            outcomes = await until_gone(caller.request, _gather(threads))
        finally:
            await _close(threads)
        return JSONResponse(write_trifurcation(heading, outcomes), headers=headers)

    return router


class _Thread:
    """One role's answer while it comes."""

    def __init__(self, answer: OpenAnswer, named: Named) -> None:
        self.answer = answer
        self.model = str(named.request.model_id)
        self.texts: asyncio.Queue[str | None] = asyncio.Queue(_MAX_UNREAD)
        """None is the end."""

    async def read(self, *, has_reader: bool) -> Outcome:
        """What came of it; has_reader: its texts are taken from the queue meanwhile."""
        gathered = Answer.of(1)
        try:
            async for event in self.answer:
                gathered.add(event)
                if has_reader and isinstance(event, ChoiceDelta) and event.text:
                    await self.texts.put(event.text)
            outcome = Outcome(self.model, _check_whole(gathered))
        except PacelineError as error:
            outcome = Outcome(self.model, error=error)
        if has_reader:
            await self.texts.put(None)
        return outcome


async def _gather(threads: dict[Role, _Thread]) -> dict[Role, Outcome]:
    """Every role's outcome. Raises main's error when all failed."""
    read = await asyncio.gather(*(thread.read(has_reader=False) for thread in threads.values()))
    outcomes = dict(zip(threads, read, strict=True))
    error = outcomes[Role.MAIN].error
    if error is not None and all(outcome.error for outcome in read):
        raise error
    return outcomes


def _check_whole(answer: Answer) -> Answer:
    """Raises InternalError for an answer that lacks its end."""
    _ = answer.usage, answer.choices[0].finish_reason
    return answer


async def _close(threads: dict[Role, _Thread]) -> None:
    for thread in threads.values():
        await thread.answer.aclose()


async def _tell(heading: Heading, threads: dict[Role, _Thread]) -> AsyncGenerator[str, None]:
    """Server-sent events: the speculative answer, then the main one, the verdict as soon as it is there, and the whole at the end."""
    reading = {
        role: asyncio.create_task(thread.read(has_reader=role is not Role.VALIDATOR))
        for role, thread in threads.items()
    }
    verdict = reading[Role.VALIDATOR]
    is_told = False
    try:
        yield write_event("created", trifurcation=heading.show())
        for role in (Role.SPECULATIVE, Role.MAIN):
            while (text := await threads[role].texts.get()) is not None:
                if verdict.done() and not is_told:
                    is_told = True
                    yield _tell_role(Role.VALIDATOR, verdict.result())
                yield write_event(f"{role.label}.delta", delta=text)
            yield _tell_role(role, await reading[role])
        outcomes = {role: await task for role, task in reading.items()}
        if not is_told:
            yield _tell_role(Role.VALIDATOR, outcomes[Role.VALIDATOR])
        yield write_event("completed", trifurcation=write_trifurcation(heading, outcomes))
    finally:
        for task in reading.values():
            task.cancel()
        await asyncio.gather(*reading.values(), return_exceptions=True)
        await _close(threads)


def _tell_role(role: Role, outcome: Outcome) -> str:
    """That a role is over."""
    shown = show_role(role, outcome)
    if outcome.error is not None:
        return write_event(f"{role.label}.failed", role=shown)
    said = {"validated": read_verdict(outcome)} if role is Role.VALIDATOR else {"text": outcome.text}
    return write_event(f"{role.label}.completed", role=shown, **said)
