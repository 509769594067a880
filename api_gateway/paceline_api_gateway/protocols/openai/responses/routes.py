"""/v1/responses. Effects only; what is said is made in the neighbours."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from paceline_api_gateway.openapi import describe_faults, show_examples
from paceline_api_gateway.protocols.openai.responses.desk import ResponseDesk
from paceline_api_gateway.protocols.openai.responses.errors import unsupported_value, write_fault
from paceline_api_gateway.protocols.openai.responses.keeper import Keeper, Owned
from paceline_api_gateway.protocols.openai.responses.pages import MAX_LIMIT, Order, list_page
from paceline_api_gateway.protocols.openai.responses.schema import Json, PromptBody, ResponseRequest
from paceline_api_gateway.serving import Caller, Serving, read_caller

Called = Annotated[Caller, Depends(read_caller)]


def make_router(serving: Serving, keeper: Keeper) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], responses=describe_faults(write_fault))
    desk = ResponseDesk(serving, keeper)

    @router.post(
        "/v1/responses",
        summary="Create a response",
        openapi_extra=show_examples(text=_EXAMPLE, conversation=_CONVERSATION),
    )
    async def create_response(body: ResponseRequest, caller: Called) -> Response:
        """Answers items of a conversation: whole, as a stream of typed events, or in the background."""
        order = await desk.take_order(body, caller)
        if body.stream:
            return await desk.stream(order)
        response = await desk.find_answered(order)
        if response is None:
            response = await (desk.start(order) if body.background else desk.answer(order))
        return JSONResponse(response, headers=order.headers)

    @router.post(
        "/v1/responses/input_tokens",
        summary="Count the tokens of a prompt",
        openapi_extra=show_examples(text=_COUNT_EXAMPLE),
    )
    async def count_input_tokens(body: PromptBody, caller: Called) -> Json:
        """Counts what POST /v1/responses with the same body would compute; generates nothing."""
        return {"object": "response.input_tokens", "input_tokens": await desk.count_tokens(body, caller)}

    @router.get("/v1/responses/{response_id}", summary="Show a stored response")
    async def get_response(response_id: str, caller: Called, stream: Annotated[bool, Query()] = False) -> Json:  # noqa: FBT002
        """The response as it is now; one in the background may still be queued or in progress."""
        if stream:
            raise unsupported_value("stream", "a stored response is not streamed: ask for it without stream")
        return (await keeper.find(Owned(caller.client_id, response_id))).response

    @router.delete("/v1/responses/{response_id}", summary="Delete a stored response")
    async def delete_response(response_id: str, caller: Called) -> Json:
        """Forgets the response, and what it was made from where no other response needs it; ends it where it is under way."""
        await keeper.delete(Owned(caller.client_id, response_id))
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/v1/responses/{response_id}/cancel", summary="Cancel a response in the background")
    async def cancel_response(response_id: str, caller: Called) -> Json:
        """Ends its generation; of one that is over, nothing changes."""
        return await keeper.cancel(Owned(caller.client_id, response_id))

    @router.get("/v1/responses/{response_id}/input_items", summary="List what a response was made from")
    async def list_input_items(
        response_id: str,
        caller: Called,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 20,
        order: Order = "desc",
    ) -> Json:
        """All items of its conversation up to it, the newest first unless order is asc."""
        stored = await keeper.find(Owned(caller.client_id, response_id))
        return list_page([item.body for item in stored.inputs], order, after, limit)

    return router


_EXAMPLE: Json = {
    "model": "smollm2-135m-instruct",
    "instructions": "Answer in one sentence.",
    "input": "What is a paceline?",
}
_COUNT_EXAMPLE: Json = {"model": "smollm2-135m-instruct", "input": "What is a paceline?"}


_CONVERSATION: Json = {
    "model": "smollm2-135m-instruct",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "How is the weather in Turin?"}]}],
    "tools": [
        {
            "type": "function",
            "name": "get_weather",
            "description": "Tells the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            "strict": True,
        }
    ],
    "stream": True,
    "store": False,
}
