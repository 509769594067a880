"""The pipe to the agent: RunnerCommand in, RunnerReport out, one JSON message a line (protobuf's JSON form)."""

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import BinaryIO

import psutil
from google.protobuf import json_format

from paceline.stage.v1 import stage_pb2
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.runners import RunnerReport, ShardAssignment
from paceline_services.errors import InvalidRequestError

MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Start:
    shard: ShardAssignment


@dataclass(frozen=True, slots=True)
class JoinGroup:
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Connect:
    next_address: str
    rank_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drain:
    deadline_s: float


Command = Start | JoinGroup | Connect | Drain


def parse_command(line: bytes) -> Command:
    """Raises InvalidRequestError for anything but a RunnerCommand."""
    try:
        message = json_format.Parse(line, stage_pb2.RunnerCommand())
    except json_format.ParseError as error:
        raise InvalidRequestError(f"the agent sent a line that is no command: {error}") from error
    kind = message.WhichOneof("command")
    if kind == "start":
        return Start(from_proto(message.start, ShardAssignment))
    if kind == "connect":
        return Connect(message.connect.next_address, tuple(message.connect.rank_addresses))
    if kind == "join_group":
        return JoinGroup(tuple(message.join_group.addresses))
    if kind == "drain":
        return Drain(message.drain.deadline_ms / 1e3)
    raise InvalidRequestError("the agent sent a command without content")


class AgentPipe:
    """Both directions. Whatever else prints to standard output goes to standard error instead."""

    def __init__(self, commands: asyncio.StreamReader, reports: BinaryIO) -> None:
        self._commands = commands
        self._reports = reports

    @classmethod
    async def open(cls) -> "AgentPipe":
        """Take over this process's standard input and output."""
        reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        return cls(reader, reports)

    async def next_command(self) -> Command | None:
        """The next command; None when the agent is gone."""
        line = await self._commands.readline()
        return parse_command(line) if line.strip() else None

    def report(self, report: RunnerReport) -> None:
        """Tell the agent. A small line into a pipe: it does not block as long as the agent reads."""
        message = to_proto(report, stage_pb2.RunnerReport)
        line = json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)
        try:
            self._reports.write(line.encode() + b"\n")
        except BrokenPipeError:
            return  # the agent is gone; end of file on standard input says so too


def resident_bytes() -> int:
    """Resident set size of this process in bytes."""
    return int(psutil.Process().memory_info().rss)
