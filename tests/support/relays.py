"""Stages before a head that pass its calls on, as runners do, and instances that lie in several stages."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import grpc.aio

from paceline.generation.v1 import generation_pb2_grpc
from paceline_services.domain.instances import Instance, Shard, ShardPlacement
from paceline_services.domain.runners import RunnerReport, RunnerState, ShardAssignment
from paceline_services.ids import Epoch, InstanceId, NodeId
from paceline_services.rpc import serve_rpc
from paceline_worker.runner.servicer import GenerationServicer
from support.head import MODEL, make_instance

INSTANCE = InstanceId("demo-1")


def make_staged_instance(head_address: str, *stage_addresses: str, epoch: int = 1) -> Instance:
    """An instance whose stages before the head listen at these addresses, the first stage first."""
    addresses = (*stage_addresses, head_address)
    shards = [
        Shard(
            ShardPlacement(NodeId(f"node-{stage}"), stage, stage, stage + 1),
            RunnerReport(INSTANCE, Epoch(epoch), stage, stage, stage + 1, RunnerState.READY, address=address),
        )
        for stage, address in enumerate(addresses)
    ]
    return replace(make_instance(INSTANCE, head_address, epoch=epoch), shards=tuple(shards))


@asynccontextmanager
async def serve_relay(next_address: str | None, *, epoch: int = 1) -> AsyncIterator[str]:
    """A stage before the head, at the address that is yielded. None: it does not know the next one yet."""
    following: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    if next_address is not None:
        following.set_result(next_address)
    servicer = GenerationServicer()
    servicer.serve(ShardAssignment(INSTANCE, Epoch(epoch), MODEL, 0, 2, 0, 1, 512), None, following)

    def add(server: grpc.aio.Server) -> None:
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)

    async with serve_rpc("127.0.0.1:0", add, grace_s=0) as server:
        yield f"127.0.0.1:{server.port}"


@asynccontextmanager
async def serve_relays(head_address: str, number: int) -> AsyncIterator[Sequence[str]]:
    """So many stages before a head, the first stage first."""
    addresses = [head_address]
    async with AsyncExitStack() as stack:
        for _ in range(number):
            addresses.insert(0, await stack.enter_async_context(serve_relay(addresses[0])))
        yield addresses[:-1]
