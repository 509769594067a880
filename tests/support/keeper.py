"""One process of a test's cluster, kept running: logged into a file, started again half a second after its death, as systemd would.

A thread of its own waits for each process, so that a death is seen at once and tests may be of any kind. Where setpriv is there, the
process dies with this one, however this one dies.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support.programs import Program

RESTART_PAUSE_S = 0.5
JOIN_TIMEOUT_S = 20.0


class Keeper:
    """Keeps one program running from start to end, but while it is held."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.num_ends = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._allowed = threading.Event()
        self._allowed.set()
        self._spawning = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=program.name, daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process that runs, stopped ones included; None between two."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it running; returns before it serves."""
        self._thread.start()

    def kill(self) -> None:
        """kill -9; it is started again after a pause."""
        if self._process is not None:
            self._process.kill()

    def forbid(self) -> None:
        """Once it is dead, it is not started again until release."""
        with self._spawning:
            self._allowed.clear()

    def hold(self) -> None:
        """kill -9, and not again until release. Returns when it is gone."""
        self.forbid()
        if (process := self._process) is not None:
            process.kill()
            process.wait(JOIN_TIMEOUT_S)

    def release(self) -> None:
        """End of forbid and hold."""
        self._allowed.set()

    def end(self) -> None:
        """kill -9 for good."""
        with self._spawning:
            self._ended.set()
        self._allowed.set()
        if self._thread.ident is not None:
            self.kill()
            self._thread.join(JOIN_TIMEOUT_S)

    def tree(self) -> list[psutil.Process]:
        """The process and everything that it started."""
        with suppress(psutil.NoSuchProcess):
            if pid := self.pid:
                process = psutil.Process(pid)
                return [process, *process.children(recursive=True)]
        return []

    def _keep(self) -> None:
        while (process := self._spawn()) is not None:
            process.wait()
            self.num_ends += 1
            self._ended.wait(RESTART_PAUSE_S)

    def _spawn(self) -> "subprocess.Popen[bytes] | None":
        """The next process, once it may run; None at the end."""
        while True:
            self._allowed.wait()
            with self._spawning:
                if self._ended.is_set():
                    return None
                if self._allowed.is_set():
                    self._process = _start(self.program, self.log)
                    return self._process


@contextmanager
def held(*keepers: Keeper) -> Iterator[None]:
    """Nothing of these runs for as long as the block does."""
    for keeper in keepers:
        keeper.forbid()
    for keeper in keepers:
        keeper.hold()
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.release()


def _start(program: Program, log: Path) -> "subprocess.Popen[bytes]":
    tie = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [*tie, *program.host.prefix(), *program.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, **program.environment},
        )
