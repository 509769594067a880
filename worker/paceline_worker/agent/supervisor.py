"""One runner as a child process: its pipe, its moves, its end, its last words."""

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
from google.protobuf import json_format
from google.protobuf.message import Message

from paceline.stage.v1 import stage_pb2
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.runners import RunnerReport, RunnerState, ShardAssignment
from paceline_services.errors import InvalidRequestError
from paceline_services.logs import get_logger
from paceline_worker.agent.inventory import count_oom_kills
from paceline_worker.agent.last_words import Ending
from paceline_worker.agent.plan import KnownRunner, RunnerKey, key_of
from paceline_worker.agent.spawning import Spawned
from paceline_worker.agent.watchdog import Watched
from paceline_worker.stamps import StampPage

LAST_LINES = 20
MAX_LOG_BYTES = 10 << 20


class UnstartedRunner:
    """A runner whose process could not be made (no memory, too many processes): reported FAILED until its epoch is over."""

    def __init__(self, shard: ShardAssignment, error: OSError) -> None:
        message = f"the runner could not be started: {error.strerror or error}"
        self.shard = shard
        self.report = _report_of(shard, RunnerState.FAILED, failure_message=message)

    @property
    def known(self) -> KnownRunner:
        return KnownRunner(self.shard, RunnerState.FAILED, is_alive=False)


class RunnerProcess:
    """A started runner. report is what it last said, or FAILED once it ended without being told to."""

    def __init__(
        self,
        shard: ShardAssignment,
        process: asyncio.subprocess.Process,
        stamps: StampPage,
        on_change: Callable[[], None],
    ) -> None:
        self.shard = shard
        self.report = _report_of(shard, RunnerState.STARTING, pid=process.pid)
        self._process = process
        self._stamps = stamps
        self._watched = Watched()
        self._fault = ""
        self._num_oom_kills = count_oom_kills()
        self._on_change = on_change
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._is_connected = False
        self._is_stopping = False
        self._has_joined = False

    @classmethod
    async def start(cls, shard: ShardAssignment, spawned: Spawned, on_change: Callable[[], None]) -> "RunnerProcess":
        """Tell a process its shard; watch must then be run until it returns."""
        runner = cls(shard, spawned.process, spawned.stamps, on_change)
        await runner._send(stage_pb2.RunnerCommand(start=to_proto(shard, stage_pb2.ShardAssignment)))
        return runner

    @property
    def key(self) -> RunnerKey:
        return key_of(self.shard)

    @property
    def known(self) -> KnownRunner:
        is_alive = self._process.returncode is None
        return KnownRunner(
            self.shard,
            self.report.state,
            is_alive,
            is_connected=self._is_connected,
            is_stopping=self._is_stopping,
            has_joined=self._has_joined,
            group_address=self.report.group_address,
        )

    @property
    def _is_given_up(self) -> bool:
        """Whether it has said that its group is gone: it may wait for lost ones for ever, and is ended with its epoch."""
        return self.shard.group is not None and self.report.state is RunnerState.BROKEN

    async def move(self, shard: ShardAssignment) -> None:
        """Let the runner hold another shard of its instance from now on; what it still says of the one before is passed over."""
        self.shard = shard
        self.report = _report_of(shard, RunnerState.LOADING, pid=self._process.pid)
        self._is_connected = False
        await self._send(stage_pb2.RunnerCommand(start=to_proto(shard, stage_pb2.ShardAssignment)))

    def look_after(self, passed_s: float) -> None:
        """See whether the runner moves, passed_s after the last look, and kill it when it is wedged."""
        if self._process.returncode is not None or self._fault or self._is_given_up:
            return
        is_stopped = _is_stopped(self._process.pid)
        self._watched = self._watched.look(self._stamps.read(), passed_s, is_stopped=is_stopped)
        if fault := self._watched.find_fault():
            self._fault = fault
            get_logger().error("runner_wedged", **self.key._asdict(), reason=fault)
            with suppress(ProcessLookupError):
                self._process.kill()

    async def watch(self, log: Path) -> None:
        """Read what the runner says until it has ended."""
        assert self._process.stdout is not None and self._process.stderr is not None
        await asyncio.gather(self._read_reports(self._process.stdout), self._read_errors(self._process.stderr, log))
        code = await self._process.wait()
        self._stamps.close()
        if not self._is_stopping:
            self.report = self._report_end(code)
            get_logger().error("runner_failed", **self.key._asdict(), exit_code=code)
        self._on_change()

    async def join_group(self, addresses: Sequence[str]) -> None:
        self._has_joined = True
        command = stage_pb2.JoinGroupCommand(addresses=addresses)
        await self._send(stage_pb2.RunnerCommand(join_group=command))

    async def connect(self, next_address: str, rank_addresses: Sequence[str] = ()) -> None:
        self._is_connected = True
        command = stage_pb2.ConnectCommand(next_address=next_address, rank_addresses=rank_addresses)
        await self._send(stage_pb2.RunnerCommand(connect=command))

    def begin_stop(self) -> None:
        """From now on its end is wanted, and no failure."""
        self._is_stopping = True

    async def stop(self, timeout_s: float) -> None:
        """Let the runner finish within timeout_s, then end it by force. Returns when it is gone."""
        self.begin_stop()
        drain = stage_pb2.DrainCommand(deadline_ms=round(timeout_s * 1e3))
        await self._send(stage_pb2.RunnerCommand(drain=drain))
        for number, patience_s in ((None, timeout_s + 1.0), (signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
            if number is not None and self._process.returncode is None:
                self._process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._process.wait()
                    return

    async def kill(self) -> None:
        """End the runner at once. Returns when it is gone."""
        self.begin_stop()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _send(self, command: Message) -> None:
        line = json_format.MessageToJson(command, indent=None, preserving_proto_field_name=True)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def _read_reports(self, stream: asyncio.StreamReader) -> None:
        while line := await _read_line(stream):
            try:
                report = from_proto(json_format.Parse(line, stage_pb2.RunnerReport()), RunnerReport)
            except (json_format.ParseError, UnicodeDecodeError, InvalidRequestError):
                get_logger().warning("runner_line_ignored", instance_id=self.key.instance_id, size_bytes=len(line))
                continue
            if RunnerKey(report.instance_id, report.epoch, report.stage, report.rank) == self.key:
                before, self.report = self.report, report
                if not is_same_but_for_load(before, report):
                    self._on_change()

    async def _read_errors(self, stream: asyncio.StreamReader, log: Path) -> None:
        """Keep the last lines, and all of them in a file of bounded size, as long as the disk takes them."""
        is_written = True
        while line := await _read_line(stream):
            self._last_lines.append(line.decode(errors="replace").rstrip())
            try:
                if is_written:
                    _append(log, line)
            except OSError as error:
                is_written = False
                get_logger().warning("runner_log_not_written", file=str(log), reason=error.strerror)

    def _report_end(self, code: int) -> RunnerReport:
        ending = Ending(code, self._fault, count_oom_kills() - self._num_oom_kills, tuple(self._last_lines))
        return replace(
            self.report,
            state=RunnerState.FAILED,
            address="",
            failure_message=ending.describe(),
            load=None,
            lost_stage=None,
            lost_rank=None,
            is_out_of_memory=self.report.is_out_of_memory or ending.was_killed_for_memory,
        )


def is_same_but_for_load(one: RunnerReport, other: RunnerReport) -> bool:
    """Whether two reports differ in nothing that anyone acts on: load and memory go with the next heartbeat."""
    return replace(one, load=None, resident_bytes=0) == replace(other, load=None, resident_bytes=0)


def _report_of(shard: ShardAssignment, state: RunnerState, *, pid: int = 0, failure_message: str = "") -> RunnerReport:
    return RunnerReport(
        *(shard.instance_id, shard.epoch, shard.stage, shard.start_layer, shard.end_layer),
        state=state,
        pid=pid,
        failure_message=failure_message,
        rank=shard.rank,
    )


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _append(log: Path, line: bytes) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        if file.tell() < MAX_LOG_BYTES:
            file.write(line)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line; one that is too long is passed over."""
    while True:
        try:
            return await stream.readline()
        except ValueError:
            continue
