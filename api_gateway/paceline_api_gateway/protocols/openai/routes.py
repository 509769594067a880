"""POST /v1/chat/completions and GET /v1/models. Effects only; shapes are made in translate."""

import time
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.faults import to_fault
from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.openapi import describe_faults, show_examples, show_stream
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.schema import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate import (
    ChunkWriter,
    Envelope,
    Json,
    to_generate_request,
    to_logprob,
    to_usage,
    write_event,
)
from paceline_api_gateway.routing.choice import list_models
from paceline_api_gateway.serving import Caller, Serving, read_caller
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.errors import NotFoundError, PacelineError

DONE = "data: [DONE]\n\n"
CHAT_EXAMPLE: Json = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}]}
CHUNK_EXAMPLE = (
    'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"smollm2-135m-instruct",'
    '"choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}]}\n\n'
)


def make_router(serving: Serving) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], responses=describe_faults(write_fault))

    @router.post(
        "/v1/chat/completions",
        responses=show_stream(SERVER_SENT_EVENTS.media_type, CHUNK_EXAMPLE),
        openapi_extra=show_examples(whole=CHAT_EXAMPLE, stream=CHAT_EXAMPLE | {"stream": True}),
    )
    async def create_chat_completion(
        body: ChatCompletionRequest, caller: Annotated[Caller, Depends(read_caller)]
    ) -> Response:
        """Answers a conversation, whole or, with stream, as server-sent events that end with [DONE]."""
        named = serving.name(to_generate_request(body), caller)
        envelope = Envelope(f"chatcmpl-{named.answer_id}", int(time.time()), body.model, bool(body.return_token_ids))
        headers = {"X-Request-Id": named.request.request_id}
        if not body.stream:
            answer = await serving.answer(named.request, caller)
            return JSONResponse(to_response(answer, envelope, has_logprobs=named.request.logprobs), headers=headers)
        stream = await serving.stream(named.request, caller)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        texts = stream_chunks(stream, envelope, named.request.num_choices, with_usage=with_usage)
        return AnswerResponse(texts, stream, headers, SERVER_SENT_EVENTS)

    @router.get("/v1/models")
    async def get_models() -> Json:
        """Models that can be named in requests."""
        return {"object": "list", "data": [describe_model(name) for name in list_models(serving.table.state)]}

    @router.get("/v1/models/{model_id:path}")
    async def get_model(model_id: str) -> Json:
        """One of them."""
        known = list_models(serving.table.state)
        if model_id not in known:
            raise NotFoundError(
                f"the model {model_id!r} does not exist here. Models: {', '.join(known) or 'none'}",
                reason="MODEL_NOT_FOUND",
            )
        return describe_model(model_id)

    return router


def describe_model(model_id: str) -> Json:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "paceline"}


async def stream_chunks(
    events: AsyncIterable[GenerationEvent], envelope: Envelope, num_choices: int, *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events of one answer; ends with [DONE] whatever happens."""
    writer = ChunkWriter(envelope, has_usage=with_usage)
    try:
        async for event in events:
            match event:
                case ChoiceDelta():
                    yield writer.write_delta(event)
                case ChoiceFinished():
                    yield writer.write([envelope.finish_choice(event.choice_index, event.finish_reason.value)])
                case GenerationStarted():
                    for index in range(num_choices):
                        yield writer.write([envelope.role_choice(index)])
                case GenerationCompleted() if with_usage:
                    yield writer.write([], to_usage(event))
    except PacelineError as error:
        yield write_event(write_fault(to_fault(error)))
    yield DONE


def to_response(answer: Answer, envelope: Envelope, *, has_logprobs: bool) -> Json:
    """The whole answer as one body."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": {"content": [to_logprob(one) for one in choice.logprobs], "refusal": None}
            if has_logprobs
            else None,
            "finish_reason": choice.finish_reason.value,
        }
        | ({"token_ids": choice.token_ids} if envelope.with_token_ids else {})
        for index, choice in enumerate(answer.choices)
    ]
    return envelope.response(choices, to_usage(answer.usage))
