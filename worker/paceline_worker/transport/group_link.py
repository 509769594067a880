"""Hand-off: activations go to the next stage through the group whose members the stages are, and their frames' headers over a link.

Each tensor is sent and received on the thread that owns MLX, in the order of the headers. A header goes first, so that the next stage
takes up its tensor while it is sent. Sending waits for the next stage, receiving for the one before, which has begun to send by then; from
the last stage to the first no tensor goes, so nobody waits for itself in a circle.

A tensor goes as its raw bytes (uint8), whatever its type. A group that has lost a member is of no use any more: the epoch is over.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import mlx.core as mx
import numpy as np

from paceline_services.domain.steps import Tensor, TensorHeader
from paceline_worker.transport.frame import Frame
from paceline_worker.transport.link import INBOX_FRAMES, FrameInbox, LinkBrokenError, Neighbour, StageLink

R = TypeVar("R")


class RunOnCompute(Protocol):
    """Runs work on the thread that owns MLX, one piece after another in the order of the calls."""

    def __call__(self, work: Callable[[], R]) -> Awaitable[R]: ...


class HandOff:
    """A stage's place among the stages: its rank in the group is its number."""

    def __init__(self, group: mx.distributed.Group, run: RunOnCompute) -> None:
        self._group = group
        self._run = run

    async def send(self, tensors: Sequence[Tensor]) -> None:
        """To the next stage; returns when they are on their way. Raises LinkBrokenError."""
        try:
            await self._run(lambda: self._send(tensors))
        except RuntimeError as error:
            raise LinkBrokenError(f"the group lost the next stage: {error}", Neighbour.NEXT) from error

    async def receive(self, headers: Sequence[TensorHeader]) -> tuple[Tensor, ...]:
        """The tensors of these headers, from the stage before. Raises LinkBrokenError."""
        try:
            return await self._run(lambda: self._receive(headers))
        except RuntimeError as error:
            raise LinkBrokenError(f"the group lost the previous stage: {error}", Neighbour.PREVIOUS) from error

    def _send(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            raw = mx.array(np.frombuffer(tensor.content, np.uint8))
            mx.eval(mx.distributed.send(raw, self._group.rank() + 1, group=self._group))

    def _receive(self, headers: Sequence[TensorHeader]) -> tuple[Tensor, ...]:
        tensors = []
        for header in headers:
            raw = mx.distributed.recv((header.size_bytes,), mx.uint8, self._group.rank() - 1, group=self._group)
            mx.eval(raw)
            tensors.append(Tensor(header, memoryview(raw)))  # type: ignore[arg-type,unused-ignore]
        return tuple(tensors)


class HandOffLink:
    """A StageLink whose tensors go through the group; headers, and all that tells of a break, go over the link beneath.

    One send at a time: tensors must follow each other as their headers do.
    """

    def __init__(self, link: StageLink, hand_off: HandOff) -> None:
        self._link = link
        self._hand_off = hand_off

    async def send(self, frame: Frame) -> None:
        if not frame.tensors:
            await self._link.send(frame)
            return
        await self._link.send(Frame(replace(frame.header, is_handed_off=True)))
        await self._hand_off.send(frame.tensors)

    async def wait_broken(self) -> LinkBrokenError:
        return await self._link.wait_broken()

    async def close(self) -> None:
        await self._link.close()


class HandOffInbox(FrameInbox):
    """The incoming edge: what was handed off is taken out of the group as soon as its header is there, so that the sender goes on."""

    def __init__(self, hand_off: HandOff, capacity: int = INBOX_FRAMES) -> None:
        super().__init__(capacity)
        self._hand_off = hand_off

    async def put(self, frame: Frame) -> None:
        """Raises LinkBrokenError when the group has lost the sender; the edge is broken then."""
        if frame.header.is_handed_off:
            try:
                tensors = await self._hand_off.receive(frame.header.tensors)
            except LinkBrokenError as error:
                self.break_with(error.message)
                raise
            frame = Frame(replace(frame.header, is_handed_off=False), tensors)
        await super().put(frame)
