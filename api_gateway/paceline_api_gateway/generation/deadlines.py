"""Deadlines of running requests, which a stop of the gateway brings forward."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from paceline_services.errors import PacelineError, TimeoutExpiredError, UnavailableError

T = TypeVar("T")


class Deadline:
    """One request's deadline, at a time of the loop's clock in seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._expired: PacelineError = TimeoutExpiredError(
            f"the request took longer than {timeout_s:g} s: ask for fewer tokens (max_tokens)"
        )
        self._at = asyncio.get_running_loop().time() + timeout_s
        self._running: asyncio.Timeout | None = None

    @property
    def left_s(self) -> float:
        return self._at - asyncio.get_running_loop().time()

    def bring_forward(self, at: float, reason: PacelineError) -> None:
        """End earlier, with a reason; a later time changes nothing."""
        if at < self._at:
            self._at, self._expired = at, reason
            if self._running is not None:
                self._running.reschedule(at)

    async def guard(self, work: Awaitable[T]) -> T:
        """What work returns; raises TimeoutExpiredError, or the reason given since, when the deadline passes first."""
        running = asyncio.timeout_at(self._at)
        try:
            async with running:
                self._running = running
                return await work
        except TimeoutError:
            if running.expired():
                raise self._expired from None
            raise
        finally:
            self._running = None


class Deadlines:
    """Those of all running requests."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._open: set[Deadline] = set()
        self._stop_at: float | None = None

    @contextmanager
    def start(self) -> Iterator[Deadline]:
        """The deadline of a request that begins now and ends with the block."""
        deadline = Deadline(self._timeout_s)
        if self._stop_at is not None:
            deadline.bring_forward(self._stop_at, _stopping())
        self._open.add(deadline)
        try:
            yield deadline
        finally:
            self._open.discard(deadline)

    def stop_within(self, timeout_s: float) -> None:
        """End every request, those to come too, within a time in seconds."""
        self._stop_at = asyncio.get_running_loop().time() + timeout_s
        for deadline in list(self._open):
            deadline.bring_forward(self._stop_at, _stopping())


def _stopping() -> UnavailableError:
    return UnavailableError("this gateway is stopping: send the request again", reason="GATEWAY_STOPPING")
