"""An edge whose two ends are processes of their own, as a group needs them; here is what drives them: a StageLink and an inbox."""

import asyncio
import base64
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from paceline_worker.transport.frame import Frame, decode_frame, encode_frame
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour
from support.edge_process import MAX_LINE_BYTES

TESTS = Path(__file__).parents[1]
START_LIMIT_S = 90.0
CALL_LIMIT_S = 60.0


@dataclass
class End:
    """A process of support.edge_process."""

    process: Process
    _ids: "count[int]" = field(default_factory=count)
    _waiting: dict[int, "asyncio.Future[dict[str, Any]]"] = field(default_factory=dict)

    @classmethod
    async def start(cls, role: str, folder: Path) -> "End":
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "support.edge_process", role, str(folder)),
                stdin=PIPE,
                stdout=PIPE,
                limit=MAX_LINE_BYTES,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        )

    async def read_line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    async def write_line(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def call(self, name: str, **facts: Any) -> dict[str, Any]:
        """The process's answer. Raises LinkBrokenError as it did."""
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self.write_line(json.dumps({"id": number, "call": name, **facts}))
        async with asyncio.timeout(CALL_LIMIT_S):
            told = await answer
        if "broken" in told:
            raise LinkBrokenError(told["broken"], Neighbour(told["neighbour"]))
        return told

    async def read_answers(self) -> None:
        """Until the process has ended."""
        while line := await self.read_line():
            told = json.loads(line)
            self._waiting.pop(told["id"]).set_result(told)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class RemoteLink:
    """The StageLink of a sending process."""

    def __init__(self, end: End) -> None:
        self.end = end

    async def send(self, frame: Frame) -> None:
        await self.end.call("send", frame=base64.b64encode(encode_frame(frame)).decode())

    async def wait_broken(self) -> LinkBrokenError:
        try:
            await self.end.call("wait_broken")
        except LinkBrokenError as error:
            return error
        raise AssertionError("the link did not break")

    async def close(self) -> None:
        await self.end.call("close")


class RemoteInbox(FrameInbox):
    """The inbox of a receiving process."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self._closing: asyncio.Task[object] | None = None

    async def get(self) -> Frame:
        return decode_frame(base64.b64decode((await self.end.call("get"))["frame"]))

    def close(self) -> None:
        super().close()
        self._closing = asyncio.create_task(self.end.call("close"))


@asynccontextmanager
async def open_edge(folder: Path) -> AsyncIterator[tuple[RemoteLink, RemoteInbox]]:
    """Two processes, joined to a ring, and the edge from the first to the second; both are killed at the end."""
    sender, receiver = ends = [await End.start("sender", folder), await End.start("receiver", folder)]
    answering: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(START_LIMIT_S):
            addresses = json.dumps([await end.read_line() for end in ends])
            for end in ends:
                await end.write_line(addresses)
            await sender.write_line(await receiver.read_line())
            assert [await end.read_line() for end in ends] == ["ready", "ready"]
        answering = [asyncio.create_task(end.read_answers()) for end in ends]
        yield RemoteLink(sender), RemoteInbox(receiver)
    finally:
        for end in ends:
            await end.kill()
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
