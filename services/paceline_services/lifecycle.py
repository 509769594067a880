"""Life of a process: run until told to stop, stop in order, leave nothing behind."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from paceline_services.errors import PacelineError
from paceline_services.logs import get_logger

ONE_REQUEST_S = 1.0
"""Signals that come within this time are one request: a terminal and a parent process may both pass on the same Ctrl-C."""


class StopSignal:
    """Set by SIGTERM or SIGINT; a second one, after ONE_REQUEST_S, ends the process at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._first_time = 0.0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._event.is_set():
            self._first_time = now
            self._event.set()
        elif now - self._first_time > ONE_REQUEST_S:
            sys.stderr.flush()
            # A second request to stop: whatever still runs is given up.
            signal.raise_signal(signal.SIGKILL)

    def request(self) -> None:
        """Stop as if a signal had come."""
        self._event.set()

    def is_requested(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()


async def run_until(stopped: Awaitable[Any], work: Coroutine[Any, Any, Any]) -> None:
    """Run work until it ends or stopped does; then cancel what is left and wait for it. Raises what work raises."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopped)
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        for pending in (task, stop):
            pending.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(task, stop, return_exceptions=True)


def run_service(
    main: Callable[[StopSignal], Coroutine[Any, Any, None]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a service's main coroutine with a stop signal; returns the process's exit code. loop_factory: of another loop than asyncio's.

    An error of our tree ends as one line on standard error; any other exception is logged with its traceback.
    """

    async def run() -> None:
        stop = StopSignal()
        stop.install()
        await main(stop)

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())
    except PacelineError as error:
        print(f"paceline: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        get_logger().error("service_failed", exc_info=error)
        return 70
    return 0
