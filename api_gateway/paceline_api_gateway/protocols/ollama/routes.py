"""Ollama's paths, under /api and /ollama/api. Effects only; shapes are made in translate_* and models."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from paceline_api_gateway.connection import until_gone
from paceline_api_gateway.protocols.ollama import answers
from paceline_api_gateway.protocols.ollama.answering import (
    LINES,
    Question,
    answer,
    answer_nothing,
    find,
    find_known,
    telling_absence,
)
from paceline_api_gateway.protocols.ollama.models import list_running, list_tags, show_model
from paceline_api_gateway.protocols.ollama.pull import begin_pull, wait_pulled, write_pull
from paceline_api_gateway.protocols.ollama.route import OllamaRoute
from paceline_api_gateway.protocols.ollama.schema import AnswerBody, ChatBody, GenerateBody, ModelBody, PullBody
from paceline_api_gateway.protocols.ollama.translate_events import Envelope
from paceline_api_gateway.protocols.ollama.translate_request import (
    asks_nothing,
    check_supported,
    to_chat_request,
    to_generate_request,
)
from paceline_api_gateway.serving import Caller, Serving, read_caller
from paceline_services.clients import ControlPlaneClient

Json = dict[str, Any]

VERSION = "0.13.0"
"""The version of Ollama that clients are told; some ask for a least one."""
_REFUSED = {
    "create": "models cannot be made here: place one with `paceline place`",
    "copy": "models have no second names here",
    "push": "models cannot be published from here",
    "embed": "embeddings are not supported: no model here is made for them",
    "embeddings": "embeddings are not supported: no model here is made for them",
    "blobs/{digest}": "files cannot be sent here: place a model with `paceline place`",
}
_DIGEST = {"name": "digest", "in": "path", "required": True, "schema": {"type": "string"}}


def make_router(serving: Serving, client: ControlPlaneClient) -> APIRouter:
    """Everything under /api and /ollama/api, and at /ollama the sign that somebody is there."""
    router = APIRouter()
    for prefix in ("/api", "/ollama/api"):
        paths = APIRouter(prefix=prefix, route_class=OllamaRoute, tags=["Ollama"])
        _add_answers(paths, serving)
        _add_listings(paths, serving)
        _add_changes(paths, serving, client)
        _add_refusals(paths)
        router.include_router(paths)
    for path in ("/ollama", "/ollama/"):
        router.add_api_route(path, get_sign, methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _add_answers(router: APIRouter, serving: Serving) -> None:
    def ask(body: AnswerBody, caller: Caller) -> Question:
        envelope = Envelope(body.model, isinstance(body, ChatBody), time.time_ns())
        return Question(body, find(serving.table, body.model), caller, envelope)

    @router.post(
        "/chat",
        summary="Answer a conversation",
        responses=answers.describe_chat(),
        openapi_extra=answers.show_example("chat"),
    )
    async def chat(body: ChatBody, caller: Annotated[Caller, Depends(read_caller)]) -> Response:
        """As Ollama: a line for each part of the answer, or with `stream: false` one object. Without messages the model is loaded."""
        question = ask(body, caller)
        if asks_nothing(body):
            return await answer_nothing(serving, question)
        return await answer(serving, question, to_chat_request(body, question.model_id))

    @router.post(
        "/generate",
        summary="Go on with a prompt",
        responses=answers.describe_generate(),
        openapi_extra=answers.show_example("generate"),
    )
    async def generate(body: GenerateBody, caller: Annotated[Caller, Depends(read_caller)]) -> Response:
        """As Ollama: a line for each part of the answer, or with `stream: false` one object. Without a prompt the model is loaded."""
        question = ask(body, caller)
        check_supported(body)
        if asks_nothing(body):
            return await answer_nothing(serving, question)
        return await answer(serving, question, to_generate_request(body, question.model_id))


def _add_listings(router: APIRouter, serving: Serving) -> None:
    table = serving.table

    @router.get("/tags", summary="List models", responses=answers.describe(answers.TagsAnswer, 400, 500, 503))
    async def get_tags() -> Response:
        """Every model that the cluster knows."""
        return JSONResponse({"models": list_tags(table.state)})

    @router.get(
        "/ps", summary="List running models", responses=answers.describe(answers.RunningListAnswer, 400, 500, 503)
    )
    async def get_running() -> Response:
        """Every model with an instance that answers."""
        return JSONResponse({"models": list_running(table.state)})

    @router.post(
        "/show",
        summary="Show a model",
        responses=answers.describe(answers.ShowAnswer, *answers.READING),
        openapi_extra=answers.show_example("show"),
    )
    async def show(body: ModelBody) -> Response:
        """What is known of it; its chat template is known to its instance only."""
        with telling_absence(table, body.model_name):
            return JSONResponse(show_model(find_known(table, body.model_name), table.state))

    @router.get("/version", summary="Tell the version", responses=answers.describe(answers.VersionAnswer, 400, 500))
    async def get_version() -> Response:
        """The version of Ollama whose API this follows."""
        return JSONResponse({"version": VERSION})

    router.add_api_route("/tags", get_tags, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/version", get_version, methods=["HEAD"], include_in_schema=False)


def _add_changes(router: APIRouter, serving: Serving, client: ControlPlaneClient) -> None:
    table = serving.table

    @router.post(
        "/pull", summary="Fetch a model", responses=answers.describe_pull(), openapi_extra=answers.show_example("pull")
    )
    async def pull(body: PullBody, request: Request) -> Response:
        """A known model is there already; one of a hub, named `owner/name`, is placed, and lines tell how far its nodes are."""
        model_id = find(table, body.model_name)
        await begin_pull(body.model_name, model_id, table, client)
        if body.stream is False:
            return JSONResponse(await until_gone(request, wait_pulled(model_id, table)))
        return StreamingResponse(write_pull(model_id, table), media_type=LINES.media_type)

    @router.delete(
        "/delete",
        summary="Remove a model",
        response_class=Response,
        responses=answers.describe_errors(*answers.READING),
        openapi_extra=answers.show_example("delete"),
    )
    async def delete(body: ModelBody) -> Response:
        """Ends every instance of the model; its files stay on their nodes."""
        with telling_absence(table, body.model_name):
            model_id = find_known(table, body.model_name)
        for instance in (await table.read_state()).instances:
            if instance.spec.source.model_id == model_id:
                await client.remove_instance(instance.spec.instance_id)
        return Response()


def _add_refusals(router: APIRouter) -> None:
    for path, why in _REFUSED.items():
        router.add_api_route(
            f"/{path}",
            _make_refusal(why),
            methods=["POST"],
            name=f"refuse_{path.split('/', maxsplit=1)[0]}",
            summary="Not supported",
            description=f"Answered with 501: {why}.",
            status_code=501,
            responses=answers.describe_errors(*answers.REFUSING),
            openapi_extra={"parameters": [_DIGEST]} if "{digest}" in path else None,
        )


def _make_refusal(why: str) -> Any:
    async def refuse() -> Response:
        raise HTTPException(501, why)

    return refuse


async def get_sign() -> Response:
    return PlainTextResponse("Ollama is running")
