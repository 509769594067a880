"""POST /v1/chat/completions and GET /v1/models. Effects only; shapes are made in translate."""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.connection import until_gone
from paceline_api_gateway.event_stream import EventStreamResponse
from paceline_api_gateway.generation.deadlines import parse_timeout
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.idempotency import fix_draws, identify, parse_key
from paceline_api_gateway.identity import name_client
from paceline_api_gateway.protocols.openai.schema import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate import (
    ChunkWriter,
    Envelope,
    Json,
    to_error,
    to_generate_request,
    to_logprob,
    to_usage,
    write_event,
)
from paceline_api_gateway.routing.choice import list_models
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.errors import InternalError, NotFoundError, PacelineError
from paceline_services.ids import RequestId, make_request_id

DONE = "data: [DONE]\n\n"


def make_router(dispatcher: Dispatcher, table: RouteTable, keep_alive_s: float) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(
        body: ChatCompletionRequest,
        request: Request,
        x_request_id: Annotated[str | None, Header()] = None,
        x_request_timeout: Annotated[str | None, Header()] = None,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> Response:
        key = parse_key(idempotency_key)
        timeout_s = parse_timeout(x_request_timeout, dispatcher.limits.timeout_s)
        client_id = name_client(request.headers, request.client.host if request.client else "")
        generate = to_generate_request(body, RequestId((x_request_id or "")[:128]), client_id)
        generate, answer_id = name_request(generate, key)
        envelope = Envelope(f"chatcmpl-{answer_id}", int(time.time()), body.model, bool(body.return_token_ids))
        headers = {"X-Request-Id": generate.request_id}
        events = dispatcher.generate(generate, timeout_s)
        if not body.stream:
            return JSONResponse(await until_gone(request, collect(events, envelope, generate)), headers=headers)
        # The first event decides between an error status and a stream.
        first = await until_gone(request, next_event(events))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        stream = stream_chunks(first, events, envelope, generate.num_choices, with_usage=with_usage)
        return EventStreamResponse(stream, headers, keep_alive_s)

    @router.get("/v1/models")
    async def get_models() -> Json:
        return {"object": "list", "data": [describe_model(name) for name in list_models(table.state)]}

    @router.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Json:
        known = list_models(table.state)
        if model_id not in known:
            raise NotFoundError(
                f"the model {model_id!r} does not exist here. Models: {', '.join(known) or 'none'}",
                reason="MODEL_NOT_FOUND",
            )
        return describe_model(model_id)

    return router


def name_request(request: GenerateRequest, key: str | None) -> tuple[GenerateRequest, str]:
    """The request with an id, and the answer's: made from the idempotency key where there is one, which then fixes the draws too."""
    if key is None:
        return replace(request, request_id=request.request_id or make_request_id()), secrets.token_hex(12)
    identity = identify(key, request)
    fixed = fix_draws(request, identity)
    return replace(fixed, request_id=request.request_id or identity.request_id), identity.answer_id


def describe_model(model_id: str) -> Json:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "paceline"}


async def stream_chunks(
    first: GenerationEvent,
    events: AsyncGenerator[GenerationEvent, None],
    envelope: Envelope,
    num_choices: int,
    *,
    with_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events of one answer; ends with [DONE] whatever happens."""

    writer = ChunkWriter(envelope, has_usage=with_usage)
    assert isinstance(first, GenerationStarted)
    async with aclosing(events):
        for index in range(num_choices):
            yield writer.write([envelope.role_choice(index)])
        try:
            async for event in events:
                match event:
                    case ChoiceDelta():
                        yield writer.write_delta(event)
                    case ChoiceFinished():
                        yield writer.write([envelope.finish_choice(event.choice_index, event.finish_reason.value)])
                    case GenerationCompleted() if with_usage:
                        yield writer.write([], to_usage(event))
        except PacelineError as error:
            yield write_event(to_error(error))
        yield DONE


async def next_event(events: AsyncGenerator[GenerationEvent, None]) -> GenerationEvent:
    return await anext(events)


async def collect(events: AsyncGenerator[GenerationEvent, None], envelope: Envelope, request: GenerateRequest) -> Json:
    """The whole answer as one body."""
    texts = [""] * request.num_choices
    tokens: list[list[int]] = [[] for _ in texts]
    logprobs: list[list[Json]] = [[] for _ in texts]
    reasons: list[str | None] = [None] * request.num_choices
    usage: Json | None = None
    async with aclosing(events):
        async for event in events:
            match event:
                case ChoiceDelta(choice_index, token_ids, text):
                    texts[choice_index] += text
                    tokens[choice_index].extend(token_ids)
                    logprobs[choice_index].extend(to_logprob(one) for one in event.logprobs)
                case ChoiceFinished(choice_index, reason):
                    reasons[choice_index] = reason.value
                case GenerationCompleted():
                    usage = to_usage(event)
    if usage is None:
        raise InternalError("the head ended an answer without its last event")
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": logprobs[index], "refusal": None} if request.logprobs else None,
            "finish_reason": reasons[index],
        }
        | ({"token_ids": tokens[index]} if envelope.with_token_ids else {})
        for index, text in enumerate(texts)
    ]
    return envelope.response(choices, usage)
