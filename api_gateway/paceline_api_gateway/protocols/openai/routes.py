"""POST /v1/chat/completions and GET /v1/models; completions and embeddings are in routes_completions. Effects only."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.openapi import describe_faults
from paceline_api_gateway.protocols.openai.answering import JsonAnswer, naming_fields, write_stream
from paceline_api_gateway.protocols.openai.documents import (
    ASKING_ERRORS,
    BAD_REQUEST,
    CHAT_BODIES,
    DEFECT,
    NOT_FOUND,
    ChatCompletion,
    ChatCompletionChunk,
    ModelCard,
    ModelList,
    describe_answer,
)
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.routes_completions import add_completion_routes
from paceline_api_gateway.protocols.openai.schema_chat import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate_events import ChatForm, ChunkWriter, WholeAnswer, to_response
from paceline_api_gateway.protocols.openai.translate_request import to_generate_request
from paceline_api_gateway.protocols.openai.translate_sampling import wants_usage
from paceline_api_gateway.protocols.openai.translate_tools import has_legacy_functions
from paceline_api_gateway.protocols.openai.wire import Envelope, Json, make_fingerprint
from paceline_api_gateway.routing.choice import list_models
from paceline_api_gateway.serving import Caller, Serving, read_caller
from paceline_services.domain.generation import Conversation, GenerateRequest, ToolChoiceMode
from paceline_services.errors import NotFoundError


def make_router(serving: Serving) -> APIRouter:
    router = APIRouter(responses=describe_faults(write_fault))
    fingerprint = make_fingerprint()

    @router.post(
        "/v1/chat/completions",
        tags=["OpenAI"],
        summary="Answer a conversation",
        responses=describe_answer(ChatCompletion, ChatCompletionChunk) | ASKING_ERRORS,
        openapi_extra=CHAT_BODIES,
    )
    async def create_chat_completion(
        body: ChatCompletionRequest, caller: Annotated[Caller, Depends(read_caller)]
    ) -> Response:
        """OpenAI's chat completions, with tools, structured output and some of vLLM's extensions; whole, or streamed with `stream`."""
        has_usage = wants_usage(body)
        named = serving.name(to_generate_request(body), caller)
        envelope = Envelope(f"chatcmpl-{named.answer_id}", int(time.time()), body.model, fingerprint)
        form = to_form(body, named.request, has_usage=has_usage)
        headers = {"X-Request-Id": named.request.request_id}
        answer = serving.open(named.request, caller)
        if not body.stream:
            whole = WholeAnswer(form)
            with naming_fields():
                await answer.gather(caller, whole.take)
            return JsonAnswer(to_response(whole, envelope, form), headers=headers)
        with naming_fields():
            await answer.begin(caller)
        return AnswerResponse(write_stream(answer, ChunkWriter(envelope, form)), answer, headers, SERVER_SENT_EVENTS)

    add_completion_routes(router, serving, fingerprint)
    _add_model_routes(router, serving)
    return router


def _add_model_routes(router: APIRouter, serving: Serving) -> None:
    @router.get(
        "/v1/models",
        tags=["OpenAI"],
        summary="List models",
        response_model=None,
        responses={200: {"model": ModelList}, **BAD_REQUEST, **DEFECT},
    )
    async def get_models() -> Json:
        """Every model that the cluster knows, running or not."""
        return {"object": "list", "data": [describe_model(name) for name in list_models(serving.table.state)]}

    @router.get(
        "/v1/models/{model_id:path}",
        tags=["OpenAI"],
        summary="Show one model",
        response_model=None,
        responses={200: {"model": ModelCard}, **BAD_REQUEST, **NOT_FOUND, **DEFECT},
    )
    async def get_model(model_id: str) -> Json:
        """One model by its id, which may have slashes."""
        known = list_models(serving.table.state)
        if model_id not in known:
            raise NotFoundError(
                f"the model {model_id!r} does not exist here. Models: {', '.join(known) or 'none'}",
                reason="MODEL_NOT_FOUND",
                param="model",
            )
        return describe_model(model_id)


def to_form(body: ChatCompletionRequest, request: GenerateRequest, *, has_usage: bool) -> ChatForm:
    """What the answer to a request has in it."""
    return ChatForm(
        num_choices=request.num_choices,
        has_usage=has_usage,
        has_logprobs=request.logprobs,
        has_token_ids=bool(body.return_token_ids),
        is_legacy=has_legacy_functions(body),
        may_call=request.conversation is not None and may_call(request.conversation),
    )


def may_call(talk: Conversation) -> bool:
    """Whether an answer may call tools."""
    return bool(talk.tools) and (talk.tool_choice is None or talk.tool_choice.mode is not ToolChoiceMode.NONE)


def describe_model(model_id: str) -> Json:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "paceline"}
