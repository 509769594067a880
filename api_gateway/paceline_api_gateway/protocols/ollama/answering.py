"""From a body of Ollama's to its response: an answer, whole or in lines, or a model that is loaded."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.connection import until_gone
from paceline_api_gateway.event_stream import AnswerResponse, StreamForm
from paceline_api_gateway.faults import to_fault
from paceline_api_gateway.protocols.ollama.errors import write_fault
from paceline_api_gateway.protocols.ollama.names import find_model, write_name
from paceline_api_gateway.protocols.ollama.schema import AnswerBody
from paceline_api_gateway.protocols.ollama.translate_events import Envelope, LineWriter, to_answer, write_line
from paceline_api_gateway.protocols.ollama.translate_request import asks_unload
from paceline_api_gateway.routing.choice import Search, list_models
from paceline_api_gateway.routing.table import RouteTable
from paceline_api_gateway.serving import Caller, Serving
from paceline_services.domain.generation import GenerateRequest, GenerationEvent
from paceline_services.errors import NotFoundError, PacelineError
from paceline_services.ids import ModelId

Json = dict[str, Any]

LINES = StreamForm("application/x-ndjson", b"")
"""There is nothing that Ollama's clients skip: while an answer pauses nothing is sent, and they wait without end."""


@dataclass(frozen=True, slots=True)
class Question:
    """A body with all that its answer needs. model_id: the model that the body's name means."""

    body: AnswerBody
    model_id: ModelId
    caller: Caller
    envelope: Envelope


def find(table: RouteTable, name: str) -> ModelId:
    """The model that Ollama's name means; one that nobody knows is refused later, as the cluster may be finding its state again."""
    return find_model(name, list_models(table.state) if table.has_state else ())


def find_known(table: RouteTable, name: str) -> ModelId:
    """The same; raises NotFoundError where the cluster does not know it."""
    model_id = find(table, name)
    if model_id not in list_models(table.state):
        raise NotFoundError("", reason="MODEL_NOT_FOUND")
    return model_id


@contextmanager
def telling_absence(table: RouteTable, name: str) -> Iterator[None]:
    """Says that a model is not there as Ollama does."""
    try:
        yield
    except NotFoundError as error:
        if error.reason != "MODEL_NOT_FOUND":
            raise
        there = ", ".join(write_name(one) for one in list_models(table.state)) or "none"
        raise NotFoundError(f"model '{name}' not found. Models: {there}", reason=error.reason) from error


async def answer(serving: Serving, question: Question, request: GenerateRequest) -> Response:
    """The answer to the request; in lines, unless stream is false."""
    named = serving.name(request, question.caller)
    headers = {"X-Request-Id": named.request.request_id}
    with telling_absence(serving.table, question.body.model):
        if question.body.stream is False:
            whole = await serving.answer(named.request, question.caller)
            return JSONResponse(to_answer(whole, question.envelope), headers=headers)
        stream = await serving.stream(named.request, question.caller)
    texts = stream_lines(stream, LineWriter(question.envelope))
    return AnswerResponse(texts, stream, headers, LINES)


async def answer_nothing(serving: Serving, question: Question) -> Response:
    """To a body without a prompt: the model is there when this returns. One that is to be unloaded stays, as others may be using it."""
    table, envelope = serving.table, question.envelope
    with telling_absence(table, question.body.model):
        if asks_unload(question.body):
            find_known(table, question.body.model)
            return JSONResponse(envelope.describe("") | {"done": True, "done_reason": "unload"})
        until = asyncio.get_running_loop().time() + table.patience.wait_s
        await until_gone(question.caller.request, table.find(Search(question.model_id), until))
    return JSONResponse(envelope.describe("") | {"done": True, "done_reason": "load"})


async def stream_lines(events: AsyncIterable[GenerationEvent], writer: LineWriter) -> AsyncGenerator[str, None]:
    """The lines of one answer; the last is done, or an error."""
    try:
        async for event in events:
            if text := writer.write(event):
                yield text
    except PacelineError as error:
        yield write_line(write_fault(to_fault(error)))
