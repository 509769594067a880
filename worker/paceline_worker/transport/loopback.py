"""The in-process twin of a link: frames go straight into the next stage's inbox.

They still pass through the wire form, so that a test of a pipeline tests the codec with it.
"""

import asyncio
from typing import Any

from paceline_worker.transport.frame import Frame, decode_frame, encode_frame
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour


class LoopbackLink:
    def __init__(self, inbox: FrameInbox) -> None:
        self._inbox = inbox
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send(self, frame: Frame) -> None:
        if self._inbox.is_closed:
            self.cut()
        if self._broken.done():
            raise LinkBrokenError(self._broken.result(), Neighbour.NEXT)
        await self._inbox.put(decode_frame(encode_frame(frame)))

    async def wait_broken(self) -> LinkBrokenError:
        closing = asyncio.create_task(self._inbox.wait_closed())
        waited: set[asyncio.Future[Any]] = {closing, self._broken}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                self.cut()
            return LinkBrokenError(self._broken.result(), Neighbour.NEXT)
        finally:
            closing.cancel()

    def cut(self) -> None:
        """Break the edge on both sides, as a lost neighbour would."""
        reason = "the link was cut"
        self._inbox.break_with(reason)
        if not self._broken.done():
            self._broken.set_result(reason)

    async def close(self) -> None:
        self._inbox.break_with("the previous stage closed the link")
