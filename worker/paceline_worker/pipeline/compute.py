"""The compute thread: the one thread of a runner that touches MLX. Everything else is asyncio."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


class ComputeThread:
    """Runs functions one after another on a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compute")

    async def run(self, work: Callable[[], R]) -> R:
        """Run work on the compute thread. Cancelling the wait does not interrupt the work."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Take no more work; what runs, runs to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
