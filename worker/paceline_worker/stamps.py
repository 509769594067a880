"""What a runner's own threads write into memory that its agent reads, so that the agent sees from outside whether work moves.

The compute thread stamps begin and end of each piece of work itself, the event loop its ticks: nothing speaks for another. The memory is
one page of a file without a name, inherited by the runner; it lives as long as either process has it. Eight signed 64-bit integers in the
machine's byte order, times in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share:

    0  pieces of work begun        3  end of the last one
    1  pieces of work finished     4  longest time that the running one may take, in nanoseconds
    2  begin of the last one       5  last tick of the event loop; 0 before the first one

Each value is written at once and by one thread only. Values may be read a moment apart: whoever decides looks more than once.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STAMPS_VARIABLE = "PACELINE_STAMPS_FD"
"""Environment variable by which an agent tells its runner the number of the inherited file."""
PAGE_BYTES = 4096
_NS = 1_000_000_000
_BEGUN, _FINISHED, _BEGIN_TIME, _END_TIME, _LIMIT, _TICK = range(6)


@dataclass(frozen=True, slots=True)
class Stamps:
    """What was stamped at some time. limit_s: how long the running piece of work may take; tick_ns is 0 before the first tick."""

    num_begun: int = 0
    num_finished: int = 0
    limit_s: float = 0.0
    tick_ns: int = 0

    @property
    def is_working(self) -> bool:
        return self.num_begun != self.num_finished


class StampPage:
    """The shared page, of either process."""

    def __init__(self, fd: int) -> None:
        """Map an open file of PAGE_BYTES; the caller may close it then."""
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._values = memoryview(self._map).cast("q")

    def begin_work(self, limit_s: float) -> None:
        """The compute thread begins a piece of work that it gives so many seconds."""
        self._values[_LIMIT] = round(limit_s * _NS)
        self._values[_BEGIN_TIME] = time.monotonic_ns()
        self._values[_BEGUN] += 1

    def end_work(self) -> None:
        """The compute thread has finished its piece of work."""
        self._values[_END_TIME] = time.monotonic_ns()
        self._values[_FINISHED] = self._values[_BEGUN]

    def renew_work(self, limit_s: float) -> None:
        """A long piece of work moved on: what follows counts as a new one."""
        self.end_work()
        self.begin_work(limit_s)

    def tick(self) -> None:
        """The event loop is alive."""
        self._values[_TICK] = time.monotonic_ns()

    def read(self) -> Stamps:
        values = self._values
        return Stamps(values[_BEGUN], values[_FINISHED], values[_LIMIT] / _NS, values[_TICK])

    def close(self) -> None:
        self._values.release()
        self._map.close()


@contextmanager
def make_page_file() -> Iterator[int]:
    """A new file without a name for a page, as long as the block runs; a child process may inherit its descriptor."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_BYTES)
        yield file.fileno()


def open_stamps() -> StampPage:
    """The page that this process's agent shares with it; one of its own where there is none."""
    inherited = os.environ.get(STAMPS_VARIABLE, "")
    if inherited.isdecimal():
        page = StampPage(int(inherited))
        os.close(int(inherited))
        return page
    with make_page_file() as fd:
        return StampPage(fd)
