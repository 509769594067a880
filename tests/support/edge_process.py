"""A program for tests: one end of an edge between two stages that are the members of a ring.

python -m support.edge_process sender|receiver FOLDER prints the address that it set aside for the group and, as a receiver, that of its
data plane; it reads those of the group and, as a sender, that of the data plane; then it prints "ready" and answers requests, each a line
of JSON {"id", "call", ...} either way, several at once. support.edges is the other side.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from paceline_services.domain.runners import GroupBackend, GroupSeat
from paceline_services.domain.steps import DType, StepPlan, Tensor, TensorHeader
from paceline_services.ids import Epoch, InstanceId
from paceline_services.rpc import LINK_KEEPALIVE, serve_rpc
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.transport.frame import Frame, FrameHeader, decode_frame, encode_frame
from paceline_worker.transport.group import join_group, reserve_address
from paceline_worker.transport.group_link import HandOff, HandOffInbox, HandOffLink
from paceline_worker.transport.grpc_link import GrpcLink, Reception, StageServicer
from paceline_worker.transport.link import LinkBrokenError, StageLink

INSTANCE, EPOCH = InstanceId("demo-1"), Epoch(42)
MAX_LINE_BYTES = 64 << 20
Answer = dict[str, Any]
ReadLine = Callable[[], Any]


class Sender:
    """link hands tensors off; plain_link sends them over gRPC, to compare."""

    def __init__(self, link: StageLink, plain_link: StageLink) -> None:
        self._link = link
        self._plain_link = plain_link

    async def send(self, request: Answer) -> Answer:
        await self._link.send(decode_frame(base64.b64decode(request["frame"])))
        return {}

    async def wait_broken(self, _request: Answer) -> Answer:
        raise await self._link.wait_broken()

    async def close(self, _request: Answer) -> Answer:
        await self._link.close()
        return {}

    async def flood(self, request: Answer) -> Answer:
        """Send a number of frames of so many bytes, as fast as the edge takes them."""
        header = TensorHeader(DType.FLOAT32, (request["num_bytes"] // 4,))
        tensor = Tensor(header, bytes(header.size_bytes))
        link = self._link if request["is_handed_off"] else self._plain_link
        for step in range(request["number"]):
            await link.send(Frame(FrameHeader(INSTANCE, EPOCH, StepPlan(step), (header,)), (tensor,)))
        return {}


class Receiver:
    def __init__(self, inbox: HandOffInbox) -> None:
        self._inbox = inbox

    async def get(self, _request: Answer) -> Answer:
        return {"frame": base64.b64encode(encode_frame(await self._inbox.get())).decode()}

    async def wait_broken(self, _request: Answer) -> Answer:
        raise await self._inbox.wait_broken()

    async def close(self, _request: Answer) -> Answer:
        self._inbox.close()
        return {}

    async def drain(self, request: Answer) -> Answer:
        """Take a number of frames; tells the seconds from the first to the last."""
        await self._inbox.get()
        started = time.perf_counter()
        for _ in range(request["number"] - 1):
            await self._inbox.get()
        return {"seconds": time.perf_counter() - started}


@asynccontextmanager
async def open_sender(hand_off: HandOff, read_line: ReadLine) -> AsyncIterator[Sender]:
    address = (await read_line()).decode().strip()
    link = await GrpcLink.connect(address, INSTANCE, EPOCH, 30)
    yield Sender(HandOffLink(link, hand_off), link)


@asynccontextmanager
async def open_receiver(hand_off: HandOff) -> AsyncIterator[Receiver]:
    inbox = HandOffInbox(hand_off)
    add_services = StageServicer(Reception(INSTANCE, EPOCH, inbox)).add_to
    async with serve_rpc("127.0.0.1:0", add_services, grace_s=0, keepalive=LINK_KEEPALIVE) as server:
        print(f"127.0.0.1:{server.port}", flush=True)
        yield Receiver(inbox)


async def serve(end: Sender | Receiver, read_line: ReadLine) -> None:
    """Answer requests until there are no more."""
    async with asyncio.TaskGroup() as tasks:
        while line := await read_line():
            tasks.create_task(answer(end, json.loads(line)))


async def answer(end: Sender | Receiver, request: Answer) -> None:
    try:
        given = await getattr(end, request["call"])(request)
    except LinkBrokenError as error:
        given = {"broken": error.message, "neighbour": error.neighbour.value}
    print(json.dumps({"id": request["id"], **given}), flush=True)


async def main() -> None:
    rank, folder = ("sender", "receiver").index(sys.argv[1]), Path(sys.argv[2])
    reader = asyncio.StreamReader(MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(reserve_address("127.0.0.1"), flush=True)
    addresses = tuple(json.loads(await reader.readline()))
    compute = ComputeThread()
    group = await compute.run(lambda: join_group(GroupSeat(GroupBackend.RING, rank, 2, addresses), folder))
    hand_off = HandOff(group, compute.run)
    async with open_receiver(hand_off) if rank else open_sender(hand_off, reader.readline) as end:
        print("ready", flush=True)
        await serve(end, reader.readline)


if __name__ == "__main__":
    asyncio.run(main())
