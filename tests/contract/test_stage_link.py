"""One suite over every StageLink: frames arrive in order and once, a break is told on both ends, another epoch is refused."""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import grpc.aio
import pytest

from paceline_services.addressee import Addressee
from paceline_services.domain.steps import DType, SequenceStep, StepPlan, Tensor, TensorHeader
from paceline_services.ids import Epoch, InstanceId, SequenceId
from paceline_services.rpc import LINK_KEEPALIVE, open_channel, serve_rpc
from paceline_worker.transport.frame import Frame, FrameHeader, encode_frame
from paceline_worker.transport.grpc_link import (
    METHOD,
    SERVICE,
    GrpcLink,
    Reception,
    StageServicer,
)
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour, StageLink
from paceline_worker.transport.loopback import LoopbackLink
from support.edges import open_edge
from support.tcp_proxy import TcpProxy, tcp_proxy

INSTANCE, EPOCH = InstanceId("demo-1"), Epoch(42)
VANISHED_LIMIT_S = 10.0  # 3 s are meant; a busy machine takes longer
BLOCKED_S = 4.5
Edge = tuple[StageLink, FrameInbox, Callable[[], Awaitable[None]]]


def make_frame(step: int, num_floats: int = 4) -> Frame:
    header = TensorHeader(DType.FLOAT32, (1, 1, num_floats))
    tensor = Tensor(header, bytes(header.size_bytes))
    plan = StepPlan(step, sequences=(SequenceStep(SequenceId(1), (5,), step),))
    return Frame(FrameHeader(INSTANCE, EPOCH, plan, (header,)), (tensor,))


def make_random_tensor(dtype: DType, shape: tuple[int, ...]) -> Tensor:
    header = TensorHeader(dtype, shape)
    return Tensor(header, Random(str(header)).randbytes(header.size_bytes))


@asynccontextmanager
async def open_loopback() -> AsyncIterator[Edge]:
    inbox = FrameInbox()
    link = LoopbackLink(inbox)

    async def lose_neighbour() -> None:
        link.cut()

    yield link, inbox, lose_neighbour
    await link.close()


@asynccontextmanager
async def open_grpc() -> AsyncIterator[Edge]:
    inbox = FrameInbox()
    async with serve_rpc("127.0.0.1:0", StageServicer(Reception(INSTANCE, EPOCH, inbox)).add_to, grace_s=0) as server:
        link = await GrpcLink.connect(f"127.0.0.1:{server.port}", INSTANCE, EPOCH, 5)

        async def lose_neighbour() -> None:
            await server.server.stop(0)

        yield link, inbox, lose_neighbour
        await link.close()


@asynccontextmanager
async def open_ring() -> AsyncIterator[Edge]:
    """Activations go through a group, whose members are processes: one that has lost a member is of no use to a second test."""
    with TemporaryDirectory() as folder:
        async with open_edge(Path(folder)) as (link, inbox):
            yield link, inbox, inbox.end.kill


@pytest.fixture(params=[open_loopback, open_grpc, open_ring], ids=["loopback", "grpc", "ring"])
async def edge(request: pytest.FixtureRequest) -> AsyncIterator[Edge]:
    async with request.param() as opened:
        yield opened


async def test_frames_arrive_in_order_and_once(edge: Edge) -> None:
    link, inbox, _ = edge
    for step in range(10):
        await link.send(make_frame(step))
    assert [(await inbox.get()).header.plan.step for _ in range(10)] == list(range(10))


async def test_large_activation_arrives_whole(edge: Edge) -> None:
    link, inbox, _ = edge
    await link.send(make_frame(1, num_floats=3_000_000))
    assert len((await inbox.get()).tensors[0].content) == 12_000_000


async def test_activations_of_every_type_arrive_bit_for_bit_between_plans(edge: Edge) -> None:
    link, inbox, _ = edge
    tensors = [make_random_tensor(dtype, (step, 7)) for step, dtype in enumerate(DType, start=1)]
    for step, tensor in enumerate(tensors):
        await link.send(Frame(FrameHeader(INSTANCE, EPOCH, StepPlan(2 * step), (tensor.header,)), (tensor,)))
        await link.send(Frame(FrameHeader(INSTANCE, EPOCH, StepPlan(2 * step + 1))))
    arrived = [await inbox.get() for _ in range(2 * len(tensors))]
    assert [frame.header.plan.step for frame in arrived] == list(range(2 * len(tensors)))
    assert [(one.header, bytes(one.content)) for frame in arrived for one in frame.tensors] == [
        (one.header, one.content) for one in tensors
    ]
    assert not any(frame.header.is_handed_off for frame in arrived)


async def test_lost_neighbour_breaks_the_link(edge: Edge) -> None:
    link, inbox, lose_neighbour = edge
    await link.send(make_frame(1))
    await inbox.get()
    await lose_neighbour()
    assert isinstance(await link.wait_broken(), LinkBrokenError)
    with pytest.raises(LinkBrokenError):
        await link.send(make_frame(2))


async def test_end_of_the_sender_breaks_the_inbox(edge: Edge) -> None:
    link, inbox, _ = edge
    await link.send(make_frame(1))
    assert (await inbox.get()).header.plan.step == 1
    await link.close()
    with pytest.raises(LinkBrokenError):
        await inbox.get()


async def test_receiver_that_takes_no_more_breaks_the_link(edge: Edge) -> None:
    link, inbox, _ = edge
    await link.send(make_frame(1))
    await inbox.get()
    inbox.close()
    assert (await link.wait_broken()).neighbour is Neighbour.NEXT
    with pytest.raises(LinkBrokenError):
        await link.send(make_frame(2))


@asynccontextmanager
async def serve_stage(inbox: FrameInbox) -> AsyncIterator[str]:
    add_services = StageServicer(Reception(INSTANCE, EPOCH, inbox)).add_to
    async with serve_rpc("127.0.0.1:0", add_services, grace_s=0, keepalive=LINK_KEEPALIVE) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("instance", "epoch"), [(INSTANCE, Epoch(41)), (INSTANCE, Epoch(43)), (InstanceId("other"), EPOCH)]
)
async def test_link_of_another_epoch_or_instance_is_refused(instance: InstanceId, epoch: Epoch) -> None:
    async with serve_stage(FrameInbox()) as address:
        with pytest.raises(LinkBrokenError, match="at epoch 42"):
            await GrpcLink.connect(address, instance, epoch, 5)


async def test_stale_epoch_frame_is_refused() -> None:
    inbox = FrameInbox()
    async with serve_stage(inbox) as address:
        link = await GrpcLink.connect(address, INSTANCE, EPOCH, 5)
        stale = make_frame(1)
        await link.send(Frame(replace(stale.header, epoch=Epoch(41)), stale.tensors))
        assert "at epoch 42" in (await link.wait_broken()).message
        with pytest.raises(LinkBrokenError):
            await inbox.get()
        await link.close()


async def test_malformed_frame_ends_the_stream_with_a_reason() -> None:
    async with serve_stage(FrameInbox()) as address, open_channel(address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(metadata=Addressee(INSTANCE, EPOCH).metadata)
        await call.write(encode_frame(make_frame(1))[:-3])
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_sender_is_told_the_room_of_the_receiver_and_names_it_when_it_is_gone() -> None:
    reception = Reception(INSTANCE, EPOCH, FrameInbox(), kv_capacity_tokens=4096)
    async with serve_rpc("127.0.0.1:0", StageServicer(reception).add_to, grace_s=0) as server:
        link = await GrpcLink.connect(f"127.0.0.1:{server.port}", INSTANCE, EPOCH, 5, "rank 3")
        assert link.kv_capacity_tokens == 4096
        await server.server.stop(0)
        assert "the link to rank 3 broke" in (await link.wait_broken()).message
        await link.close()


async def test_absent_neighbour_is_told_at_once() -> None:
    with pytest.raises(LinkBrokenError) as broken:
        await GrpcLink.connect("127.0.0.1:1", INSTANCE, EPOCH, 5)
    assert broken.value.neighbour is Neighbour.NEXT


@asynccontextmanager
async def open_distant_edge() -> AsyncIterator[tuple[GrpcLink, FrameInbox, TcpProxy]]:
    """An edge over a network that can be hurt."""
    inbox = FrameInbox()
    add_services = StageServicer(Reception(INSTANCE, EPOCH, inbox)).add_to
    async with (
        serve_rpc("127.0.0.1:0", add_services, grace_s=0, keepalive=LINK_KEEPALIVE) as server,
        tcp_proxy("127.0.0.1", server.port) as network,
    ):
        link = await GrpcLink.connect(f"127.0.0.1:{network.port}", INSTANCE, EPOCH, 5)
        await link.send(make_frame(1))
        await inbox.get()
        yield link, inbox, network
        await link.close()


@pytest.mark.parametrize("direction", ["both ways", "there", "back"])
async def test_network_that_swallows_everything_breaks_the_edge_at_both_ends(direction: str) -> None:
    async with open_distant_edge() as (link, inbox, network):
        if direction != "there":
            network.silence()
        if direction != "back":
            network.deafen()
        async with asyncio.timeout(VANISHED_LIMIT_S):
            ends = await asyncio.gather(link.wait_broken(), inbox.wait_broken())
        assert [end.neighbour for end in ends] == [Neighbour.NEXT, Neighbour.PREVIOUS]


async def test_next_stage_that_never_answers_is_given_up() -> None:
    async with serve_stage(FrameInbox()) as address, tcp_proxy("127.0.0.1", int(address.split(":")[1])) as network:
        network.silence()
        with pytest.raises(LinkBrokenError, match=r"did not accept the link within|broke"):
            await GrpcLink.connect(f"127.0.0.1:{network.port}", INSTANCE, EPOCH, 0.5)


async def test_receiver_that_moved_on_refuses_frames_of_the_epoch_before() -> None:
    inbox, next_inbox = FrameInbox(), FrameInbox()
    servicer = StageServicer(Reception(INSTANCE, EPOCH, inbox))
    async with serve_rpc("127.0.0.1:0", servicer.add_to, grace_s=0) as server:
        address = f"127.0.0.1:{server.port}"
        old = await GrpcLink.connect(address, INSTANCE, EPOCH, 5)
        servicer.receive(Reception(INSTANCE, Epoch(43), next_inbox))
        new = await GrpcLink.connect(address, INSTANCE, Epoch(43), 5)
        await old.send(make_frame(1))
        assert "at epoch 43" in (await old.wait_broken()).message
        frame = make_frame(2)
        await new.send(Frame(replace(frame.header, epoch=Epoch(43)), frame.tensors))
        assert (await next_inbox.get()).header.plan.step == 2
        await new.close()
        await old.close()


async def test_blocked_event_loop_breaks_no_edge() -> None:
    inbox = FrameInbox()
    async with serve_stage(inbox) as address:
        link = await GrpcLink.connect(address, INSTANCE, EPOCH, 5)
        ctypes.PyDLL(None).usleep(round(BLOCKED_S * 1e6))  # holds Python's lock, as a long call of a library may
        await link.send(make_frame(1))
        assert (await inbox.get()).header.plan.step == 1
        await link.close()
