"""The compute thread: the one thread of a runner that touches MLX. Everything else is asyncio.

It stamps begin and end of all that it does where the agent sees it (stamps.py), and how long that may take at most: a multiple of what
steps took until now, so that one that will never end is told from one that is slow.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from paceline_worker.faults import Faults
from paceline_worker.stamps import StampPage, open_stamps

R = TypeVar("R")
UNMEASURED_LIMIT_S = 120.0
"""For what nobody measured: loading from one layer to the next, the first steps, which may compile."""
SHORTEST_LIMIT_S = 5.0
STRETCH = 20.0
"""A step may take so many times what the slowest of the last ones took for as many tokens."""
RECENT_STEPS = 64
FIRST_STEPS = 4
PAUSE_S = 10.0
AFTER_PAUSE_LIMIT_S = 30.0
"""Of the first step after a pause: the machine may have swapped the weights out meanwhile."""


@dataclass(slots=True)
class Pace:
    """What the last steps took per token, and from that how long the next one may take. Pure."""

    _per_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens was computed."""
        self._per_token_s.append(seconds / num_tokens)

    def limit_s(self, num_tokens: int, idle_s: float = 0.0) -> float:
        """Seconds after which a step of so many tokens, so long after the last one, has failed for certain."""
        if len(self._per_token_s) < FIRST_STEPS:
            return UNMEASURED_LIMIT_S
        shortest = AFTER_PAUSE_LIMIT_S if idle_s > PAUSE_S else SHORTEST_LIMIT_S
        return max(shortest, STRETCH * max(self._per_token_s) * num_tokens)


class ComputeThread:
    """Runs functions one after another on a thread of its own."""

    def __init__(self, stamps: StampPage | None = None, faults: Faults | None = None) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._stamps = stamps or open_stamps()
        self._faults = faults or Faults()
        self._pace = Pace()
        self._last_end = time.perf_counter()

    async def run(self, work: Callable[[], R], *, num_tokens: int = 0, limit_s: float = UNMEASURED_LIMIT_S) -> R:
        """Run work on the compute thread. Cancelling the wait does not interrupt the work.

        num_tokens: those whose forward it runs, where it is a step; its time is measured then, and bounded by that of others. Else limit_s
        bounds it.
        """
        call = partial(self._run_step, work, num_tokens) if num_tokens else partial(self._run_other, work, limit_s)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def note_progress(self) -> None:
        """Called by long work: it moved on."""
        self._stamps.renew_work(UNMEASURED_LIMIT_S)

    def close(self) -> None:
        """Take no more work; what runs, runs to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run_step(self, work: Callable[[], R], num_tokens: int) -> R:
        started = time.perf_counter()
        self._stamps.begin_work(self._pace.limit_s(num_tokens, started - self._last_end))
        try:
            self._faults.strike()
            return work()
        finally:
            self._last_end = time.perf_counter()
            self._pace.observe(num_tokens, self._last_end - started)
            self._stamps.end_work()

    def _run_other(self, work: Callable[[], R], limit_s: float) -> R:
        self._stamps.begin_work(limit_s)
        try:
            return work()
        finally:
            self._stamps.end_work()
