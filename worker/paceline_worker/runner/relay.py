"""Calls for the head that come to a stage before it, passed on to the next stage: the way of a gateway that cannot reach the head itself.

What is passed on is neither translated nor looked at. A call goes only forward, within one epoch, so it ends at the head after as many
hops as there are stages left. Each call has a connection of its own: they are rare, and end with it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc.aio

from paceline.generation.v1 import generation_pb2, generation_pb2_grpc
from paceline_services.addressee import Addressee
from paceline_services.errors import UnavailableError, from_rpc_error, has_error_info
from paceline_services.rpc import LINK_KEEPALIVE, open_channel


class Relay:
    """Of one stage, for one epoch. next_address is done once the next stage's address is known, or cancelled with the epoch.

    Its calls raise what the head raised, and UnavailableError at once where the next stage cannot be reached. timeout_s: what is left of
    the caller's deadline; None: it has none.
    """

    def __init__(self, addressee: Addressee, next_address: "asyncio.Future[str]") -> None:
        self._addressee = addressee
        self._next_address = next_address

    async def generate(
        self, request: generation_pb2.GenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[generation_pb2.GenerateResponse, None]:
        """The head's events. Closing the iteration cancels the request."""
        async with self._reach_next() as next_stage:
            call = next_stage.Generate(request, timeout=timeout_s, metadata=self._addressee.metadata)
            try:
                with _head_errors():
                    async for response in call:
                        yield response
            finally:
                call.cancel()

    async def count_tokens(
        self, request: generation_pb2.CountTokensRequest, timeout_s: float | None
    ) -> generation_pb2.CountTokensResponse:
        async with self._reach_next() as next_stage:
            with _head_errors():
                response: generation_pb2.CountTokensResponse = await next_stage.CountTokens(
                    request, timeout=timeout_s, metadata=self._addressee.metadata
                )
        return response

    @asynccontextmanager
    async def _reach_next(self) -> AsyncIterator[generation_pb2_grpc.GenerationServiceStub]:
        if not self._next_address.done() or self._next_address.cancelled():
            raise UnavailableError("this stage has no next one now: try again", reason="INSTANCE_BROKEN")
        channel = open_channel(self._next_address.result(), LINK_KEEPALIVE)
        try:
            yield generation_pb2_grpc.GenerationServiceStub(channel)
        finally:
            await channel.close(None)


@contextmanager
def _head_errors() -> Iterator[None]:
    """What the head raised, as an error of our tree; a status that none of our servers made says that the next stage is gone."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        ours = from_rpc_error(error)
        if has_error_info(error) or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise ours from error
        message = f"the head is out of this stage's reach: {ours.message}"
        raise UnavailableError(message, reason="INSTANCE_BROKEN") from error
