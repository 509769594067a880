"""A head that answers as fast as gRPC takes it, and the control plane that names it, for the benchmark of the gateway.

python -m bench.gateway_head_process CORES. Prints the addresses of both as JSON and serves until standard input ends. What it sends was
written once: a delta of one token is the same bytes in every answer, so that the time measured is not its own.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio

from bench.serving import pin
from paceline.generation.v1 import generation_pb2
from paceline_services.clients import event_to_proto
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.ids import RequestId
from paceline_services.rpc import serve_rpc
from support.head import ScriptedControlPlane, make_instance

SERVICE = "paceline.generation.v1.GenerationService"
MAX_TOKENS = 4096
NUM_PROMPT_TOKENS = 16


def write(event: GenerationEvent) -> bytes:
    return event_to_proto(event).SerializeToString()


class Emitter:
    """Answers with as many tokens as are asked for, each in an event of its own, with a pause of as many milliseconds as the seed says."""

    def __init__(self) -> None:
        self._started = write(GenerationStarted(RequestId("r"), NUM_PROMPT_TOKENS, 1))
        self._deltas = [write(ChoiceDelta(0, (1000 + number,), " word", number)) for number in range(MAX_TOKENS)]

    async def emit(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        asked = generation_pb2.GenerateRequest.FromString(request)
        num_tokens, pause_s = min(asked.limits.max_tokens, MAX_TOKENS), asked.sampling.seed / 1e3
        yield self._started
        for delta in self._deltas[:num_tokens]:
            if pause_s:
                await asyncio.sleep(pause_s)
            yield delta
        yield write(ChoiceFinished(0, FinishReason.LENGTH, num_tokens=num_tokens))
        yield write(GenerationCompleted(NUM_PROMPT_TOKENS, num_tokens))


async def serve() -> None:
    handler = grpc.unary_stream_rpc_method_handler(Emitter().emit)

    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Generate": handler}),))

    async with AsyncExitStack() as stack:
        head = await stack.enter_async_context(serve_rpc("127.0.0.1:0", add, grace_s=0))
        control_plane = await stack.enter_async_context(ScriptedControlPlane().serve())
        address = f"127.0.0.1:{head.port}"
        await control_plane.show(make_instance("demo-1", address))
        print(json.dumps({"head": address, "control_plane": control_plane.address}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    pin(sys.argv[1])
    asyncio.run(serve())
