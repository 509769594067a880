"""POST /v1/completions and POST /v1/embeddings. Effects only."""

import time
from dataclasses import replace
from hashlib import blake2b
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.faults import Fault
from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.protocols.openai.answering import (
    JsonAnswer,
    join_answers,
    naming_fields,
    write_stream,
)
from paceline_api_gateway.protocols.openai.completion_events import CompletionForm, CompletionWriter, to_response
from paceline_api_gateway.protocols.openai.documents import (
    ASKING_ERRORS,
    BAD_REQUEST,
    COMPLETION_BODIES,
    DEFECT,
    EMBEDDING_BODIES,
    NOT_IMPLEMENTED,
    Completion,
    describe_answer,
)
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.schema import CompletionRequest, EmbeddingRequest
from paceline_api_gateway.protocols.openai.translate_completions import JoinedAnswers, to_generate_requests
from paceline_api_gateway.protocols.openai.translate_sampling import parse_model, wants_usage
from paceline_api_gateway.protocols.openai.wire import Envelope
from paceline_api_gateway.serving import Caller, Named, OpenAnswer, Serving, read_caller
from paceline_services.domain.generation import GenerateRequest
from paceline_services.ids import RequestId

_ANSWER_ID_BYTES = 12
_NO_EMBEDDINGS = Fault(
    501,
    "embeddings are not supported: the models here are trained to go on with a text, and the mean of their states is no embedding. "
    "Use a server with an embedding model",
    reason="NOT_IMPLEMENTED",
)


def add_completion_routes(router: APIRouter, serving: Serving, fingerprint: str) -> None:
    @router.post(
        "/v1/completions",
        tags=["OpenAI"],
        summary="Go on with a text",
        responses=describe_answer(Completion, Completion) | ASKING_ERRORS,
        openapi_extra=COMPLETION_BODIES,
    )
    async def create_completion(body: CompletionRequest, caller: Annotated[Caller, Depends(read_caller)]) -> Response:
        """OpenAI's completions: one prompt or several, as texts or token ids, without a chat template; whole, or streamed with `stream`."""
        has_usage = wants_usage(body)
        named = name_all(serving, to_generate_requests(body), caller)
        joined = JoinedAnswers([one.request for one in named], has_answer=body.max_tokens != 0)
        envelope = Envelope(f"cmpl-{combine_ids(named)}", int(time.time()), body.model, fingerprint)
        form = CompletionForm(
            joined.num_choices, has_usage, body.logprobs is not None, has_token_ids=bool(body.return_token_ids)
        )
        headers = {"X-Request-Id": named[0].request.request_id}
        answer = open_all(serving, named, joined, caller)
        if not body.stream:
            whole = Answer.of(joined.num_choices)
            with naming_fields():
                await answer.gather(caller, whole.add)
            return JsonAnswer(to_response(whole, envelope, form), headers=headers)
        with naming_fields():
            await answer.begin(caller)
        return AnswerResponse(
            write_stream(answer, CompletionWriter(envelope, form)), answer, headers, SERVER_SENT_EVENTS
        )

    _add_embedding_route(router)


def _add_embedding_route(router: APIRouter) -> None:
    @router.post(
        "/v1/embeddings",
        tags=["OpenAI"],
        summary="Not supported",
        response_model=None,
        responses=BAD_REQUEST | DEFECT | NOT_IMPLEMENTED,
        openapi_extra=EMBEDDING_BODIES,
    )
    async def create_embedding(body: EmbeddingRequest) -> Response:
        """Always 501, once the body is one that OpenAI would take."""
        parse_model(body.model)
        # The header tells OpenAI's clients that another try is no use, which they make by themselves for most 5xx.
        return JsonAnswer(write_fault(_NO_EMBEDDINGS), _NO_EMBEDDINGS.status, {"x-should-retry": "false"})


def name_all(serving: Serving, requests: list[GenerateRequest], caller: Caller) -> list[Named]:
    """Each with a request id of its own: that of the first, and a number for the others."""
    named = [serving.name(request, caller) for request in requests]
    request_id = named[0].request.request_id
    return [
        one if number == 0 else _with_request_id(one, RequestId(f"{request_id}-{number}"))
        for number, one in enumerate(named)
    ]


def combine_ids(named: list[Named]) -> str:
    """An id of the whole answer, as random, or as fixed by an idempotency key, as those of its parts."""
    if len(named) == 1:
        return named[0].answer_id
    return blake2b("".join(one.answer_id for one in named).encode(), digest_size=_ANSWER_ID_BYTES).hexdigest()


def open_all(serving: Serving, named: list[Named], joined: JoinedAnswers, caller: Caller) -> OpenAnswer:
    """One answer of all; whoever opens it closes it."""

    def open_one(number: int) -> OpenAnswer:
        return serving.open(named[number].request, caller)

    return OpenAnswer(join_answers(open_one, len(named), joined), serving.keep_alive_s)


def _with_request_id(named: Named, request_id: RequestId) -> Named:
    return Named(replace(named.request, request_id=request_id), named.answer_id)
