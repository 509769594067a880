"""Handing off where the group fails: the edge breaks at the end that noticed, with the reason. What goes well, the contract suite tests."""

from collections.abc import Callable
from typing import Any

import pytest

from paceline_services.domain.steps import DType, StepPlan, Tensor, TensorHeader
from paceline_services.ids import Epoch, InstanceId
from paceline_worker.transport.frame import Frame, FrameHeader
from paceline_worker.transport.group_link import HandOff, HandOffInbox, HandOffLink
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour
from paceline_worker.transport.loopback import LoopbackLink

HEADER = TensorHeader(DType.FLOAT32, (1, 2))
FRAME = Frame(FrameHeader(InstanceId("i"), Epoch(1), StepPlan(1), (HEADER,)), (Tensor(HEADER, bytes(8)),))
PLAN = Frame(FrameHeader(InstanceId("i"), Epoch(1), StepPlan(2)))


async def lose_member(_work: Callable[[], Any]) -> Any:
    """The compute thread of a group that has lost a member."""
    raise RuntimeError("[ring] connection to a peer was lost")


def make_broken() -> HandOff:
    group: Any = None
    return HandOff(group, lose_member)


async def test_sender_of_a_broken_group_has_lost_the_next_stage() -> None:
    link = HandOffLink(LoopbackLink(FrameInbox()), make_broken())
    with pytest.raises(LinkBrokenError, match="connection to a peer was lost") as broken:
        await link.send(FRAME)
    assert broken.value.neighbour is Neighbour.NEXT


async def test_receiver_of_a_broken_group_has_lost_the_previous_stage() -> None:
    inbox = HandOffInbox(make_broken())
    link = HandOffLink(LoopbackLink(inbox), make_broken())
    with pytest.raises(LinkBrokenError):
        await link.send(FRAME)
    broken = await inbox.wait_broken()
    assert broken.neighbour is Neighbour.PREVIOUS
    assert "connection to a peer was lost" in broken.message
    with pytest.raises(LinkBrokenError):
        await inbox.get()


async def test_header_is_under_way_before_its_tensors() -> None:
    inbox = FrameInbox()
    with pytest.raises(LinkBrokenError):
        await HandOffLink(LoopbackLink(inbox), make_broken()).send(FRAME)
    arrived = await inbox.get()
    assert (arrived.header.is_handed_off, arrived.header.tensors, arrived.tensors) == (True, (HEADER,), ())


async def test_plan_alone_does_without_the_group() -> None:
    inbox = HandOffInbox(make_broken())
    link = HandOffLink(LoopbackLink(inbox), make_broken())
    await link.send(PLAN)
    assert await inbox.get() == PLAN
    await link.close()
    assert (await inbox.wait_broken()).neighbour is Neighbour.PREVIOUS
