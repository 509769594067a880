"""The example client of docs/grpc.md runs as it stands against a head."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paceline_services.domain.generation import GenerateRequest, GenerationEvent, GenerationStarted
from paceline_services.errors import ContextLengthError
from paceline_services.rpc import open_channel
from support.head import MODEL, WORDS, ScriptedHead

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "generate.py"


async def run_example(address: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE), address, MODEL, "Hello"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode(), errors.decode()


async def test_example_prints_the_answer() -> None:
    async with ScriptedHead().serve() as head:
        code, output, errors = await run_example(head.address)
    assert code == 0, errors
    assert output == "".join(WORDS) + " 0\n[7 + 4 tokens]\n"
    assert head.requests[0].limits.max_tokens == 128


async def test_example_says_why_the_head_refused() -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise ContextLengthError("the prompt has 9000 tokens")
        yield GenerationStarted(request.request_id, 1, 0)

    async with ScriptedHead(refuse).serve() as head:
        code, _, errors = await run_example(head.address)
    assert code == 1 and errors == "INVALID_ARGUMENT: the prompt has 9000 tokens\n"


async def test_reflection_names_the_service() -> None:
    async with ScriptedHead().serve() as head:
        channel = open_channel(head.address)
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
        answer = await call.read()
        await channel.close(None)
    names = {service.name for service in answer.list_services_response.service}
    assert {"paceline.generation.v1.GenerationService", "grpc.health.v1.Health"} <= names
