"""What every protocol does alike between a parsed body and an answer: who asks, under which name, and when an answer begins."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Header, Request

from paceline_api_gateway.connection import until_gone
from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.generation.bounds import RequestBounds
from paceline_api_gateway.generation.deadlines import parse_timeout
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.idempotency import fix_draws, identify, parse_key
from paceline_api_gateway.identity import name_client, parse_request_id
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.domain.generation import GenerateRequest, GenerationEvent
from paceline_services.ids import RequestId, make_request_id


@dataclass(frozen=True, slots=True)
class Caller:
    """What the headers of a request say, whatever its protocol; a dependency of routes."""

    request: Request
    client_id: str
    request_id: RequestId
    timeout_text: str | None
    key: str | None


async def read_caller(  # a coroutine, though it waits for nothing: a plain function would get a thread of its own for each request
    request: Request,
    x_request_id: Annotated[str | None, Header(description="Id of the request in logs; comes back.")] = None,
    x_request_timeout: Annotated[str | None, Header(description="Seconds after which to give up.")] = None,
    idempotency_key: Annotated[str | None, Header(description="Same key and body, same answer.")] = None,
) -> Caller:
    """Raises InvalidRequestError for a header that cannot be one."""
    client_id = name_client(request.headers, request.client.host if request.client else "")
    return Caller(request, client_id, parse_request_id(x_request_id), x_request_timeout, parse_key(idempotency_key))


@dataclass(frozen=True, slots=True)
class Named:
    """A request with all that its answer depends on, and the id of the answer: hex digits, which each protocol spells its own way."""

    request: GenerateRequest
    answer_id: str


class OpenAnswer:
    """An answer on its way: iterated once, closed always."""

    def __init__(self, events: AsyncGenerator[GenerationEvent, None], keep_alive_s: float) -> None:
        self.keep_alive_s = keep_alive_s
        self._events = events
        self._first = asyncio.ensure_future(_next(events))

    async def gather(self, caller: Caller, take: Callable[[GenerationEvent], object]) -> None:
        """Give every event to take, and close. Raises PacelineError, ClientGoneError when the client leaves first."""

        async def take_all() -> None:
            async for event in self:
                take(event)

        try:
            await until_gone(caller.request, take_all())
        finally:
            await self.aclose()

    async def begin(self, caller: Caller) -> None:
        """Return when the first event is there or keep_alive_s have passed. Raises what went wrong until then, and closes."""
        begun = False
        try:
            await until_gone(caller.request, self._wait_begun())
            begun = True
        finally:
            if not begun:
                await self.aclose()

    def __aiter__(self) -> AsyncIterator[GenerationEvent]:
        return self._iterate()

    async def aclose(self) -> None:
        """Cancels the request where it is not answered."""
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._events.aclose()

    async def _wait_begun(self) -> None:
        await asyncio.wait({self._first}, timeout=self.keep_alive_s)
        if self._first.done():
            self._first.result()

    async def _iterate(self) -> AsyncIterator[GenerationEvent]:
        yield await self._first
        async for event in self._events:
            yield event


class Serving:
    """Answers canonical requests for the protocols."""

    def __init__(
        self, dispatcher: Dispatcher, table: RouteTable, keep_alive_s: float, bounds: RequestBounds | None = None
    ) -> None:
        self.table = table
        self._bounds = bounds or RequestBounds()
        self._keep_alive_s = keep_alive_s
        self._dispatcher = dispatcher

    def name(self, request: GenerateRequest, caller: Caller) -> Named:
        """The request with an id and its client, and the answer's id; an idempotency key makes both, and fixes the draws.

        Raises InvalidRequestError for one that is beyond the gateway's bounds.
        """
        self._bounds.check(request)
        request = replace(request, request_id=caller.request_id, client_id=caller.client_id)
        if caller.key is None:
            return Named(replace(request, request_id=request.request_id or make_request_id()), secrets.token_hex(12))
        identity = identify(caller.key, request)
        fixed = fix_draws(request, identity)
        return Named(replace(fixed, request_id=request.request_id or identity.request_id), identity.answer_id)

    async def answer(self, request: GenerateRequest, caller: Caller) -> Answer:
        """The whole answer. Raises PacelineError, ClientGoneError when the client leaves first."""
        answer = Answer.of(request.num_choices or 1)
        await self.open(request, caller).gather(caller, answer.add)
        return answer

    async def stream(self, request: GenerateRequest, caller: Caller) -> OpenAnswer:
        """An answer that has begun, or has been waited for as long as a stream may be silent. What goes wrong later, its events raise."""
        answer = self.open(request, caller)
        await answer.begin(caller)
        return answer

    def open(self, request: GenerateRequest, caller: Caller) -> OpenAnswer:
        """An answer that nobody watches: whoever opens it closes it."""
        timeout_s = parse_timeout(caller.timeout_text, self._dispatcher.limits.timeout_s)
        return OpenAnswer(self._dispatcher.generate(request, timeout_s), self._keep_alive_s)

    async def count_tokens(self, request: GenerateRequest, caller: Caller) -> int:
        """Tokens of the request's prompt."""
        timeout_s = parse_timeout(caller.timeout_text, self._dispatcher.limits.timeout_s)
        return await until_gone(caller.request, self._dispatcher.count_tokens(request, timeout_s))

    @property
    def keep_alive_s(self) -> float:
        """How long a stream may be silent."""
        return self._keep_alive_s


async def _next(events: AsyncGenerator[GenerationEvent, None]) -> GenerationEvent:
    return await anext(events)
