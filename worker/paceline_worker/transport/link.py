"""The seam between pipeline and transport: where frames go out and where they come in."""

import asyncio
from enum import StrEnum
from typing import Any, Protocol

from paceline_services.errors import UnavailableError
from paceline_worker.transport.frame import Frame

# More frames than this are never under way on an edge: the head has at most a few steps in flight.
INBOX_FRAMES = 16


class Neighbour(StrEnum):
    """At the other end of an edge: the stage that frames go to, or the one that they come from."""

    NEXT = "next"
    PREVIOUS = "previous"


class LinkBrokenError(UnavailableError):
    """A neighbour is gone or refused us: the epoch is over."""

    default_reason = "LINK_BROKEN"

    def __init__(self, message: str, neighbour: Neighbour, *, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.neighbour = neighbour


class StageLink(Protocol):
    """The outgoing edge to the next stage. Frames arrive in the order they were sent, each once, or the link breaks."""

    async def send(self, frame: Frame) -> None:
        """Hand a frame over; waits while the edge is full. Raises LinkBrokenError."""
        ...

    async def wait_broken(self) -> LinkBrokenError:
        """Return when the link broke, with the reason."""
        ...

    async def close(self) -> None:
        """End the edge in order; frames already sent still arrive."""
        ...


class FrameInbox:
    """The incoming edge: frames from the previous stage, in order. A full inbox holds the sender back."""

    def __init__(self, capacity: int = INBOX_FRAMES) -> None:
        self._frames: asyncio.Queue[Frame] = asyncio.Queue(capacity)
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()

    async def put(self, frame: Frame) -> None:
        await self._frames.put(frame)

    async def get(self) -> Frame:
        """The next frame. Raises LinkBrokenError once the edge broke and nothing is left."""
        if not self._frames.empty():
            return self._frames.get_nowait()
        taken: asyncio.Future[Frame] = asyncio.ensure_future(self._frames.get())
        waited: set[asyncio.Future[Any]] = {taken, self._broken}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if taken.done():
                return taken.result()
        finally:
            taken.cancel()
        raise LinkBrokenError(self._broken.result(), Neighbour.PREVIOUS)

    def break_with(self, reason: str) -> None:
        """The edge is gone; the first reason stays."""
        if not self._broken.done():
            self._broken.set_result(reason)

    async def wait_broken(self) -> LinkBrokenError:
        """Return when the edge broke, with the reason."""
        return LinkBrokenError(await asyncio.shield(self._broken), Neighbour.PREVIOUS)

    def close(self) -> None:
        """Take no more frames: breaks the edge for who sends them."""
        self._closed.set()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return when close was called."""
        await self._closed.wait()
