"""A runner without a model: a real process that speaks the agent's pipe and does what its flags say. Run as a script.

Each turn of its life is one JSON line in <home>/runners.jsonl, so that a test sees what happened in which order, also after kill -9.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paceline_services.domain.runners import RunnerLoad, RunnerReport, RunnerState, ShardAssignment
from paceline_services.settings import read_settings
from paceline_worker.runner.pipe import AgentPipe, Connect, Drain, JoinGroup, Start
from paceline_worker.runner.settings import RunnerSettings

GARBAGE = (
    b"loading 30 layers ...\n5\n[]\n{}\n"
    + b"x" * (2 << 20)
    + b'\n{"stage": -1}\n{"instance_id": "another", "state": "RUNNER_STATE_READY"}\n'
)
UNREADABLE = b"\xff\xfe\x00 no text at all \x80\n"
LOAD = RunnerLoad(
    idle_ratio=0.25, num_steps=40, num_running=3, num_waiting=2, kv_capacity_tokens=512, num_answer_tokens=90
)
FAILING_EXIT_CODE = 3
HOLD_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """One line of the journal. cause: why an "ended" one ended; num_threads and kernels: as a runner's settings have them."""

    event: str
    pid: int
    epoch: int
    stage: int
    model_path: str = ""
    next_address: str = ""
    deadline_s: float = 0.0
    cause: str = ""
    precision: str = ""
    num_threads: int = 0
    kernels: str = ""
    draft_model_path: str = ""
    rank: int = 0
    group_addresses: Sequence[str] = ()
    rank_addresses: Sequence[str] = ()


def journal_of(home: Path) -> Path:
    return home / "runners.jsonl"


def read_journal(home: Path) -> list[Turn]:
    """What every fake runner of this home did so far, in order."""
    journal = journal_of(home)
    return [Turn(**json.loads(line)) for line in journal.read_text().splitlines()] if journal.exists() else []


def hold_of(home: Path) -> Path:
    """The FIFO that a runner with --hold waits for before it ends: write to it to let it go."""
    return home / "hold"


class FakeRunner:
    """One life. flags: see parse_flags."""

    def __init__(self, flags: argparse.Namespace, pipe: AgentPipe, shard: ShardAssignment) -> None:
        self._flags = flags
        self._pipe = pipe
        self._shard = shard
        self._settings = read_settings(RunnerSettings)
        self._home = self._settings.home
        self._report = begin_report(shard)

    async def run(self) -> int:
        self._note("started", model_path=self._shard.model_path)
        if self._flags.fail_loading:
            self._tell(RunnerState.LOADING)
            return self._fail()
        self._load()
        while command := await self._pipe.next_command():
            match command:
                case Start(shard):
                    self._shard = shard
                    self._note("moved", model_path=shard.model_path)
                    self._report = begin_report(shard)
                    self._load()
                case JoinGroup(addresses):
                    self._note("joined", group_addresses=addresses)
                    self._tell_loaded()
                case Connect(next_address, rank_addresses):
                    self._note("connected", next_address=next_address, rank_addresses=rank_addresses)
                    self._tell(RunnerState.READY)
                    self._tell_load()
                case Drain(deadline_s) if not self._flags.deaf:
                    self._note("drained", deadline_s=deadline_s)
                    return await self._end("drain")
        return await self._end("end of file")

    def _load(self) -> None:
        if self._shard.group is None:
            self._tell(RunnerState.LOADING)
            self._tell_loaded()
        else:
            self._report = replace(self._report, group_address=f"127.0.0.1:{7000 + self._shard.rank}")
            self._tell(RunnerState.LOADING)

    def _tell_loaded(self) -> None:
        shard = self._shard
        self._tell(RunnerState.LOADED, address=f"127.0.0.1:{9000 + 100 * shard.rank + shard.stage}")
        if shard.rank or shard.num_stages == shard.num_ranks == 1:
            self._tell(RunnerState.READY)
            self._tell_load()

    async def _end(self, cause: str) -> int:
        if self._flags.hold:
            self._tell(RunnerState.BROKEN, failure_message="held")
            await asyncio.to_thread(hold_of(self._home).read_bytes)
        self._note("ended", cause=cause)
        return 0

    def _fail(self) -> int:
        for number in range(30):
            print(f"line {number}", file=sys.stderr)
        if self._flags.last_words:
            print(f"paceline: {self._flags.last_words}", file=sys.stderr)
        return FAILING_EXIT_CODE

    def _tell(self, state: RunnerState, *, address: str = "", failure_message: str = "") -> None:
        address = address or self._report.address
        self._report = replace(self._report, state=state, address=address, failure_message=failure_message)
        self._pipe.report(self._report)

    def _tell_load(self) -> None:
        if self._flags.load:
            self._report = replace(self._report, load=LOAD)
            self._pipe.report(self._report)

    def _note(self, event: str, **facts: Any) -> None:
        turn = Turn(
            *(event, os.getpid(), self._shard.epoch, self._shard.stage),
            rank=self._shard.rank,
            precision=self._shard.precision.value,
            num_threads=self._settings.num_threads,
            kernels=self._settings.kernels,
            draft_model_path=self._shard.draft_model_path,
            **facts,
        )
        with journal_of(self._home).open("a") as journal:
            journal.write(json.dumps(asdict(turn)) + "\n")


def begin_report(shard: ShardAssignment) -> RunnerReport:
    return RunnerReport(
        *(shard.instance_id, shard.epoch, shard.stage, shard.start_layer, shard.end_layer),
        state=RunnerState.LOADING,
        pid=os.getpid(),
        rank=shard.rank,
    )


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fail-loading", action="store_true", help="write 30 lines on standard error and exit with 3")
    parser.add_argument("--last-words", default="", help="with --fail-loading: the error line that ends them")
    parser.add_argument("--load", action="store_true", help="once READY, report a load as a head does")
    parser.add_argument("--deaf", action="store_true", help="ignore the order to end and SIGTERM")
    parser.add_argument(
        "--hold", action="store_true", help="when told to end, tell so (BROKEN, held) and wait for the FIFO"
    )
    parser.add_argument(
        "--garbage", action="store_true", help="first write lines on standard output that are no reports"
    )
    parser.add_argument(
        "--unreadable", action="store_true", help="first write bytes on standard output that are no text"
    )
    return parser.parse_args()


async def live(flags: argparse.Namespace) -> int:
    if flags.hold:
        signal.alarm(HOLD_LIMIT_S)  # a test that failed leaves nothing behind
    if flags.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for is_wanted, spoken in ((flags.garbage, GARBAGE), (flags.unreadable, UNREADABLE)):
        if is_wanted:
            sys.stdout.buffer.write(spoken)
            sys.stdout.buffer.flush()
    pipe = await AgentPipe.open()
    command = await pipe.next_command()
    return await FakeRunner(flags, pipe, command.shard).run() if isinstance(command, Start) else 2


if __name__ == "__main__":
    sys.exit(asyncio.run(live(parse_flags())))
