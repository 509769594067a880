"""One child process: started, waited for, logged, restarted when it dies, ended."""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from paceline_cli.up.plan import ChildSpec
from paceline_services.backoff import Backoff
from paceline_services.errors import ConfigurationError
from paceline_services.logs import get_logger

LAST_LINES = 30
MAX_LOG_BYTES = 20 << 20
KILL_AFTER_S = 15.0
LAST_WORDS_TIMEOUT_S = 2.0
_PR_SET_PDEATHSIG = 1


class Child:
    """Keeps one process running until stop."""

    def __init__(self, spec: ChildSpec, log: Path) -> None:
        self.spec = spec
        self.address = ""
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._is_ready = asyncio.Event()
        self._is_stopping = False
        self._readers: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, timeout_s: float, is_serving: Callable[[], bool] | None = None) -> None:
        """Start and wait until it serves. Raises ConfigurationError with the process's own last line when it does not."""
        self._rotate_log()
        await self._spawn()
        assert self._process is not None
        exited = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._wait_ready(is_serving))
        await asyncio.wait({exited, ready}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            exited.cancel()
            self._watching = asyncio.create_task(self._keep_running())
            return
        ready.cancel()
        if exited.done():
            await asyncio.wait(self._readers, timeout=LAST_WORDS_TIMEOUT_S)
            raise ConfigurationError(self._last_words())
        await self.stop()
        raise ConfigurationError(f"{self.spec.name} did not serve within {timeout_s:.0f} s; its log is {self._log}")

    async def stop(self) -> None:
        """End the process: by SIGTERM, by force if it takes too long."""
        self._is_stopping = True
        if self._watching is not None:
            self._watching.cancel()
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_AFTER_S):
                await self._process.wait()
                return
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """End the process and its children at once."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _keep_running(self) -> None:
        failures = 0
        while not self._is_stopping:
            assert self._process is not None
            started = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if self._is_stopping:
                return
            failures = failures + 1 if asyncio.get_running_loop().time() - started < 30 else 1
            pause_s = Backoff(first_s=0.2, limit_s=10.0).pause_s(failures)
            get_logger().warning("child_ended", child=self.spec.name, exit_code=code, restart_in_s=round(pause_s, 1))
            await asyncio.sleep(pause_s)
            await self._spawn()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(self._process.stdout, is_stdout=True)),
            asyncio.create_task(self._read(self._process.stderr, is_stdout=False)),
        ]

    async def _read(self, stream: asyncio.StreamReader, *, is_stdout: bool) -> None:
        with self._log.open("ab") as log:
            while line := await _read_line(stream):
                text = line.decode(errors="replace").rstrip()
                if is_stdout and self.spec.ready_word and text.startswith(self.spec.ready_word + " "):
                    self.address = text.removeprefix(self.spec.ready_word + " ")
                    self._is_ready.set()
                elif not is_stdout:
                    self._lines.append(text)
                # A full disk must not stop the reading: the child would block on a full pipe.
                with suppress(OSError):
                    if log.tell() < MAX_LOG_BYTES:
                        log.write(line)
                        log.flush()

    async def _wait_ready(self, is_serving: Callable[[], bool] | None) -> None:
        if is_serving is None:
            await self._is_ready.wait()
            return
        # Another program's readiness has no event to wait for: it is asked until it answers.
        while not await asyncio.to_thread(is_serving):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _last_words(self) -> str:
        told = [line.removeprefix("paceline: ") for line in self._lines if line.startswith("paceline: ")]
        words = told[-1] if told else (self._lines[-1] if self._lines else "it said nothing")
        return words if told else f"{self.spec.name} did not start: {words}"

    def _rotate_log(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    while True:
        try:
            return await stream.readline()
        except ValueError:
            continue  # a line too long to keep


def _die_with_parent() -> None:
    """Linux: the child gets SIGKILL when this process dies, however it dies. Runs between fork and exec; the main thread forks."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
