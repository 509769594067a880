"""Deadlines of running requests: the gateway's, a client's own, and a stop of the gateway, which brings them all forward."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeVar

from paceline_services.errors import InvalidRequestError, PacelineError, TimeoutExpiredError, UnavailableError

T = TypeVar("T")

TIMEOUT_HEADER = "X-Request-Timeout"


class Phase(StrEnum):
    """What a request is doing; completes "it ..."."""

    FINDING = "was waiting for an instance of the model"
    QUEUED = "was waiting for its turn"
    GENERATING = "was generating"
    RESUMING = "was waiting for an instance that goes on where a lost one left off"


_ADVICE = {
    Phase.FINDING: "try again when the model is ready",
    Phase.QUEUED: "try again later",
    Phase.GENERATING: "ask for fewer tokens (max_tokens)",
    Phase.RESUMING: "try again when the model is ready",
}


def parse_timeout(text: str | None, limit_s: float) -> float:
    """Seconds that a request may take: what its client says, else the limit. Raises InvalidRequestError."""
    if text is None:
        return limit_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= limit_s:
        raise InvalidRequestError(
            f"{TIMEOUT_HEADER} is {text[:40]!r}: it must be seconds, above 0 and at most {limit_s:g}",
            param=TIMEOUT_HEADER,
        )
    return timeout_s


class Deadline:
    """One request's deadline, at a time of the loop's clock in seconds.

    One timer serves the whole request, as each of its tokens is waited for under guard and a timer for each of them costs more than
    everything else about it here.
    """

    def __init__(self, timeout_s: float) -> None:
        self.phase = Phase.FINDING
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reason: PacelineError | None = None
        self._at = self._loop.time() + timeout_s
        self._timer = self._loop.call_at(self._at, self._expire)
        self._is_over = False
        self._guarded: asyncio.Task[object] | None = None

    @property
    def left_s(self) -> float:
        return self._at - self._loop.time()

    def bring_forward(self, at: float, reason: PacelineError) -> None:
        """End earlier, with a reason; a later time changes nothing."""
        if at < self._at and not self._is_over:
            self._at, self._reason = at, reason
            self._timer.cancel()
            self._timer = self._loop.call_at(at, self._expire)

    async def guard(self, work: Callable[[], Awaitable[T]]) -> T:
        """What work returns; when the deadline passes first, work is cancelled and error() raised. One at a time."""
        if self._is_over:
            raise self.error()
        task = asyncio.current_task()
        assert task is not None
        num_cancelled = task.cancelling()
        self._guarded = task
        try:
            return await work()
        except asyncio.CancelledError:
            if self._is_over and task.uncancel() <= num_cancelled:
                raise self.error() from None
            raise
        finally:
            self._guarded = None

    def error(self) -> PacelineError:
        """What to say when it has passed."""
        if self._reason is not None:
            return self._reason
        waited = f"the request took longer than {self._timeout_s:g} s"
        return TimeoutExpiredError(f"{waited}: it {self.phase}; {_ADVICE[self.phase]}")

    def close(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self._is_over = True
        if self._guarded is not None:
            self._guarded.cancel()


class Deadlines:
    """Those of all running requests."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._stop_at: float | None = None

    @contextmanager
    def start(self, timeout_s: float) -> Iterator[Deadline]:
        """The deadline of a request that begins now and ends with the block."""
        deadline = Deadline(timeout_s)
        if self._stop_at is not None:
            deadline.bring_forward(self._stop_at, _stopping())
        self._open.add(deadline)
        try:
            yield deadline
        finally:
            self._open.discard(deadline)
            deadline.close()

    def stop_within(self, timeout_s: float) -> None:
        """End every request, those to come too, within a time in seconds."""
        self._stop_at = asyncio.get_running_loop().time() + timeout_s
        for deadline in list(self._open):
            deadline.bring_forward(self._stop_at, _stopping())


def _stopping() -> UnavailableError:
    message = "this gateway is stopping: send the request again"
    return UnavailableError(message, reason="GATEWAY_STOPPING", retry_after_s="1")
