"""GenerationService on every runner: the head answers, protobuf in and out; a stage before it passes on what is meant for its instance."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from paceline.generation.v1 import generation_pb2, generation_pb2_grpc
from paceline_services.addressee import Addressee, read_addressee
from paceline_services.clients import event_to_proto, request_from_proto
from paceline_services.domain.runners import ShardAssignment
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import ModelId
from paceline_worker.pipeline.head import Head
from paceline_worker.runner.relay import Relay


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):  # type: ignore[misc,unused-ignore]
    """Serves one model: as the head, or in the epochs in which the head is elsewhere through the next stage."""

    def __init__(self) -> None:
        self._model_id = ModelId("")
        self._head: Head | None = None
        self._addressee: Addressee | None = None
        self._relay: Relay | None = None

    def serve(self, shard: ShardAssignment, head: Head | None, next_address: "asyncio.Future[str]") -> None:
        """Answer for this shard from now on, with this head. None: the head is behind the stage at next_address."""
        self._model_id, self._head = shard.model_id, head
        self._addressee = Addressee(shard.instance_id, shard.epoch)
        self._relay = None if shard.is_head else Relay(self._addressee, next_address)

    async def Generate(  # noqa: N802 (gRPC names it)
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams events; when the client is gone, closing the iteration frees the request's sequences."""
        if (relay := self._find_relay(context)) is not None:
            async with aclosing(relay.generate(request, context.time_remaining())) as responses:
                async for response in responses:
                    yield response
            return
        head = self._find_head(request.model_id)
        async with aclosing(head.generate(request_from_proto(request))) as events:
            async for event in events:
                yield event_to_proto(event)

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: Any
    ) -> generation_pb2.CountTokensResponse:
        if (relay := self._find_relay(context)) is not None:
            return await relay.count_tokens(request, context.time_remaining())
        head = self._find_head(request.request.model_id)
        return generation_pb2.CountTokensResponse(
            num_tokens=await head.count_tokens(request_from_proto(request.request))
        )

    def _find_relay(self, context: Any) -> Relay | None:
        """Whom a call goes on to; None where it is for this runner. Raises UnavailableError where it is for another epoch's."""
        addressee = read_addressee(context.invocation_metadata() or ())
        if addressee is None:
            return None
        if addressee != self._addressee:
            raise UnavailableError("this runner serves another epoch or instance now", reason="INSTANCE_BROKEN")
        return self._relay

    def _find_head(self, model_id: str) -> Head:
        if self._head is None:
            raise UnavailableError("this runner is not the head of its instance now", reason="INSTANCE_BROKEN")
        if model_id != self._model_id:
            raise NotFoundError(f"this head serves {self._model_id}, not {model_id!r}", reason="MODEL_NOT_FOUND")
        return self._head
