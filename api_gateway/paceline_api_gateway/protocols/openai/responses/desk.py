"""From a body to a response: finds what the conversation goes on from, has it answered, and keeps it.

The three ways to answer, whole, as a stream and in the background, follow the same events with the same writer.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from paceline_api_gateway.event_stream import SERVER_SENT_EVENTS, AnswerResponse
from paceline_api_gateway.faults import to_fault
from paceline_api_gateway.protocols.openai.responses.errors import describe_failure, previous_not_found
from paceline_api_gateway.protocols.openai.responses.items import list_inputs, list_references, read_items
from paceline_api_gateway.protocols.openai.responses.keeper import Keeper, Owned
from paceline_api_gateway.protocols.openai.responses.schema import Json, PromptBody, ResponseRequest
from paceline_api_gateway.protocols.openai.responses.store import Item, Stored
from paceline_api_gateway.protocols.openai.responses.translate_events import Birth, ResponseWriter, write_events
from paceline_api_gateway.protocols.openai.responses.translate_request import Plan, check, plan
from paceline_api_gateway.serving import Caller, Named, OpenAnswer, Serving
from paceline_services.errors import InvalidRequestError, PacelineError, UnavailableError


@dataclass(frozen=True, slots=True)
class Order:
    """A request that is ready to be answered."""

    caller: Caller
    named: Named
    plan: Plan
    inputs: tuple[Item, ...]
    is_stored: bool

    @property
    def owned(self) -> Owned:
        return Owned(self.caller.client_id, f"resp_{self.named.answer_id}")

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Request-Id": self.named.request.request_id}

    def make_writer(self) -> ResponseWriter:
        return ResponseWriter(Birth(self.named.answer_id, int(time.time()), self.is_stored), self.plan)


class ResponseDesk:
    """Answers the requests of the Responses API."""

    def __init__(self, serving: Serving, keeper: Keeper) -> None:
        self._serving = serving
        self._keeper = keeper

    async def take_order(self, body: ResponseRequest, caller: Caller) -> Order:
        """Raises InvalidRequestError for a body that cannot be used, NotFoundError for a reference to what is not here."""
        made, inputs = await self._plan(body, caller)
        is_stored = body.store is not False and self._keeper.store.is_on
        if body.background and not is_stored:
            raise UnavailableError(
                "no responses are stored here, and one in the background must be", reason="STORE_OFF"
            )
        return Order(caller, self._serving.name(made.request, caller), made, inputs, is_stored)

    async def find_answered(self, order: Order) -> Json | None:
        """The response that an earlier request with the same idempotency key and body has, if it is here."""
        if order.caller.key is None or not order.is_stored:
            return None
        found = await self._keeper.look(order.owned)
        return found.response if found and found.response["status"] not in {"failed", "cancelled"} else None

    async def answer(self, order: Order) -> Json:
        """The whole response. Raises PacelineError, ClientGoneError when the client leaves first."""
        writer = order.make_writer()
        writer.begin()
        await self._serving.open(order.named.request, order.caller).gather(order.caller, writer.take)
        writer.end(int(time.time()))
        await self._keep(order, writer)
        return writer.response

    async def stream(self, order: Order) -> AnswerResponse:
        """The response as events, once it has begun. Raises what goes wrong until then."""
        answer = await self._serving.stream(order.named.request, order.caller)
        return AnswerResponse(self._tell(order, answer), answer, order.headers, SERVER_SENT_EVENTS)

    async def start(self, order: Order) -> Json:
        """The response as it is when its generation in the background has been asked for."""
        answer = self._serving.open(order.named.request, order.caller)
        return await self._keeper.start(order.caller.client_id, order.make_writer(), order.inputs, answer)

    async def count_tokens(self, body: PromptBody, caller: Caller) -> int:
        """Tokens of the prompt that the body makes."""
        made, _ = await self._plan(body, caller)
        return await self._serving.count_tokens(self._serving.name(made.request, caller).request, caller)

    async def _plan(self, body: PromptBody, caller: Caller) -> tuple[Plan, tuple[Item, ...]]:
        check(body)
        earlier = await self._find_earlier(caller.client_id, body.previous_response_id)
        inputs = list_inputs(body.input)
        references = list_references(inputs)
        can_find = references and self._keeper.store.is_on
        referenced = await self._keeper.store.find_items(caller.client_id, references) if can_find else {}
        read = read_items(inputs, {name: item.body for name, item in referenced.items()})
        known = {id(item.body): item for item in referenced.values()}  # references resolve to these very objects
        items = (*earlier, *(known.get(id(body)) or Item(body) for body in read))
        return plan(body, [item.body for item in items]), items

    async def _find_earlier(self, client_id: str, response_id: str | None) -> tuple[Item, ...]:
        """All items of the conversation up to and with a response; calls that were cut off are left out."""
        if not response_id:
            return ()
        found = await self._keeper.look(Owned(client_id, response_id))
        if found is None:
            raise previous_not_found(response_id)
        if found.is_under_way:
            raise InvalidRequestError(
                f"The response {response_id[:80]!r} is still {found.response['status']}: go on from it when it is completed",
                param="previous_response_id",
            )
        whole = [item for item in found.outputs if not _is_cut_call(item.body)]
        return (*found.inputs, *whole)

    async def _tell(self, order: Order, answer: OpenAnswer) -> AsyncGenerator[str, None]:
        """Server-sent events of one response; the last one says what became of it."""
        writer = order.make_writer()
        yield write_events(writer.begin())
        try:
            async for event in answer:
                if told := writer.take(event):
                    yield write_events(told)
            last = writer.end(int(time.time()))
        except PacelineError as error:
            last = writer.fail(describe_failure(to_fault(error)))
        await self._keep(order, writer)
        last[-1]["response"] = writer.response
        yield write_events(last)

    async def _keep(self, order: Order, writer: ResponseWriter) -> None:
        """Keep it where that was asked for; where it fails, the response says that it is not stored."""
        if not order.is_stored:
            return
        try:
            await self._keeper.store.put(order.caller.client_id, Stored(writer.response, order.inputs))
        except UnavailableError:
            writer.is_stored = False


def _is_cut_call(item: Json) -> bool:
    return bool(item["type"] == "function_call" and item["status"] != "completed")
