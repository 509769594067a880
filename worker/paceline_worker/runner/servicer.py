"""GenerationService on the head: protobuf in and out, nothing else."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from paceline.generation.v1 import generation_pb2, generation_pb2_grpc
from paceline_services.clients import event_to_proto, request_from_proto
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import ModelId
from paceline_worker.pipeline.head import Head


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):  # type: ignore[misc,unused-ignore]
    """Serves one model, in the epochs in which the runner is the head."""

    def __init__(self) -> None:
        self._model_id = ModelId("")
        self._head: Head | None = None

    def serve(self, model_id: ModelId, head: Head | None) -> None:
        """Answer with this head from now on; None: the head is elsewhere."""
        self._model_id, self._head = model_id, head

    async def Generate(  # noqa: N802 (gRPC names it)
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams events; when the client is gone, closing the iteration frees the request's sequences."""
        head = self._find_head(request.model_id)
        async with aclosing(head.generate(request_from_proto(request))) as events:
            async for event in events:
                yield event_to_proto(event)

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: Any
    ) -> generation_pb2.CountTokensResponse:
        head = self._find_head(request.request.model_id)
        return generation_pb2.CountTokensResponse(
            num_tokens=await head.count_tokens(request_from_proto(request.request))
        )

    def _find_head(self, model_id: str) -> Head:
        if self._head is None:
            raise UnavailableError("this runner is not the head of its instance now", reason="INSTANCE_BROKEN")
        if model_id != self._model_id:
            raise NotFoundError(f"this head serves {self._model_id}, not {model_id!r}", reason="MODEL_NOT_FOUND")
        return self._head
