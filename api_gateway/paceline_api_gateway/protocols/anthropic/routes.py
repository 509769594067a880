"""POST /v1/messages and its neighbours. Effects only; shapes are made in translate_*."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.event_stream import AnswerResponse, StreamForm
from paceline_api_gateway.faults import to_fault
from paceline_api_gateway.openapi import show_examples
from paceline_api_gateway.protocols.anthropic.answers import (
    COUNT_EXAMPLES,
    MESSAGES_EXAMPLES,
    ClaudeCount,
    describe_errors,
    describe_message,
)
from paceline_api_gateway.protocols.anthropic.errors import write_fault
from paceline_api_gateway.protocols.anthropic.models import describe_model, list_page
from paceline_api_gateway.protocols.anthropic.route import ClaudeOnlyRoute, ClaudeRoute
from paceline_api_gateway.protocols.anthropic.schema import CountTokensRequest, MessagesRequest
from paceline_api_gateway.protocols.anthropic.translate_events import (
    PING,
    Envelope,
    EventWriter,
    to_message,
    write_event,
)
from paceline_api_gateway.protocols.anthropic.translate_request import (
    shows_thinking,
    to_count_request,
    to_generate_request,
)
from paceline_api_gateway.routing.choice import list_models
from paceline_api_gateway.serving import Caller, Serving, read_caller
from paceline_services.domain.generation import GenerationEvent
from paceline_services.errors import NotFoundError, PacelineError
from paceline_services.ids import RequestId

Json = dict[str, Any]

CLAUDE_EVENTS = StreamForm("text/event-stream", PING.encode())


def make_router(serving: Serving) -> APIRouter:
    router = APIRouter(route_class=ClaudeRoute, tags=["Claude"])

    @router.post(
        "/v1/messages",
        summary="Answer a conversation",
        responses=describe_message(),
        openapi_extra=show_examples(**MESSAGES_EXAMPLES),
    )
    async def create_message(
        body: MessagesRequest, request: Request, caller: Annotated[Caller, Depends(read_caller)]
    ) -> Response:
        """As Claude's Messages API: whole, or with `stream` as server-sent events."""
        named = serving.name(to_generate_request(body), caller)
        request.state.request_id = named.request.request_id
        envelope = make_envelope(body, named.answer_id)
        headers = {"X-Request-Id": named.request.request_id}
        if not body.stream:
            return JSONResponse(to_message(await serving.answer(named.request, caller), envelope), headers=headers)
        stream = await serving.stream(named.request, caller)
        texts = stream_events(stream, EventWriter(envelope), named.request.request_id)
        return AnswerResponse(texts, stream, headers, CLAUDE_EVENTS)

    @router.post(
        "/v1/messages/count_tokens",
        summary="Count a prompt's tokens",
        responses={200: {"model": ClaudeCount}, **describe_errors()},
        openapi_extra=show_examples(**COUNT_EXAMPLES),
    )
    async def count_tokens(
        body: CountTokensRequest, request: Request, caller: Annotated[Caller, Depends(read_caller)]
    ) -> Response:
        """The tokens that POST /v1/messages would make of the same messages, system, tools and thinking."""
        named = serving.name(to_count_request(body), caller).request
        request.state.request_id = named.request_id
        headers = {"X-Request-Id": named.request_id}
        return JSONResponse({"input_tokens": await serving.count_tokens(named, caller)}, headers=headers)

    for method, path in [("POST", "/v1/complete"), ("POST", "/v1/messages/batches"), ("GET", "/v1/messages/batches")]:
        router.add_api_route(
            path,
            refuse_path,
            methods=[method],
            summary="Not served",
            description="Answered with 404: POST /v1/messages is there instead.",
            status_code=404,
            responses=describe_errors(),
            operation_id=f"refuse_{method}_{path.rsplit('/', 1)[-1]}".lower(),
        )
    return router


def make_model_router(serving: Serving) -> APIRouter:
    """GET /v1/models for requests with the header anthropic-version: it must stand before the one of another protocol."""
    router = APIRouter(route_class=ClaudeOnlyRoute, include_in_schema=False)

    @router.get("/v1/models")
    async def get_models(
        limit: Annotated[int, Query(ge=1, le=1000)] = 20, after_id: str | None = None, before_id: str | None = None
    ) -> Response:
        state = serving.table.state
        names, has_more = list_page(list(list_models(state)), limit, after_id, before_id)
        return JSONResponse(
            {
                "data": [describe_model(name, state) for name in names],
                "has_more": has_more,
                "first_id": names[0] if names else None,
                "last_id": names[-1] if names else None,
            }
        )

    @router.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Response:
        state = serving.table.state
        known = list_models(state)
        if model_id not in known:
            there = ", ".join(known) or "none"
            raise NotFoundError(f"model: there is no {model_id!r} here. Models: {there}", reason="MODEL_NOT_FOUND")
        return JSONResponse(describe_model(model_id, state))

    return router


async def refuse_path(request: Request) -> Response:
    raise NotFoundError(f"{request.url.path} is not served: use /v1/messages")


def make_envelope(body: MessagesRequest, answer_id: str) -> Envelope:
    hides = body.thinking is not None and body.thinking.display == "omitted"
    return Envelope(f"msg_{answer_id}", body.model, body.max_tokens, shows_thinking(body.thinking), hides)


async def stream_events(
    events: AsyncIterable[GenerationEvent], writer: EventWriter, request_id: RequestId
) -> AsyncGenerator[str, None]:
    """Server-sent events of one answer; the last is message_stop, or error."""
    try:
        async for event in events:
            if text := writer.write(event):
                yield text
    except PacelineError as error:
        yield write_event("error", write_fault(to_fault(error)) | {"request_id": request_id})
