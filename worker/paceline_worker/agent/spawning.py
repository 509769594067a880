"""Processes for runners, and a spare one: started, its imports done, waiting for its first command.

Importing what a runner needs takes seconds on a machine that is busy, and a runner is mostly replaced while the machine is: the spare makes
that a matter of reading weights. There is one from some seconds after the first runner was started until the agent ends.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from paceline_services.logs import get_logger
from paceline_worker.stamps import STAMPS_VARIABLE, StampPage, make_page_file

RUNNER_COMMAND = (sys.executable, "-m", "paceline_worker.runner")
MAX_LINE_BYTES = 1 << 20
SPARE_DELAY_S = 5.0
"""After a process was taken, before the next spare one is started: the runner loads first."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that waits for its first command, and the page that it stamps."""

    process: asyncio.subprocess.Process
    stamps: StampPage


class Spawner:
    """Starts processes with one command and environment; keeps a spare one where that is wanted."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, keeps_spare: bool) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._keeps_spare = keeps_spare
        self._spare: Spawned | None = None
        self._preparing: asyncio.Task[None] | None = None

    async def take(self) -> Spawned:
        """The spare process if it is there, else a new one. Raises OSError when there is none to be had."""
        spare, self._spare = self._spare, None
        if self._keeps_spare and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare())
        if spare is not None and spare.process.returncode is None:
            return spare
        return await self._spawn()

    async def close(self) -> None:
        """End the spare process."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        if self._spare is not None:
            with suppress(ProcessLookupError):
                self._spare.process.kill()
            await self._spare.process.wait()

    async def _prepare(self) -> None:
        try:
            await asyncio.sleep(SPARE_DELAY_S)
            self._spare = await self._spawn()
        except OSError as error:
            get_logger().warning("spare_runner_not_started", reason=error.strerror)
        finally:
            self._preparing = None

    async def _spawn(self) -> Spawned:
        with make_page_file() as fd:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
                pass_fds=(fd,),
                env={**os.environ, **self._environment, STAMPS_VARIABLE: str(fd)},
            )
            return Spawned(process, StampPage(fd))
