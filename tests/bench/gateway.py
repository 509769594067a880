"""The gateway part: what the gateway adds to each token, in processor time and in latency.

A head that emits prepared events as fast as gRPC takes them and the clients share one core, the gateway has another. Processor time
of the gateway per token holds on a busy machine too; tokens per second do so only where its core is its own.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.figures import Figures
from bench.gateway_load import DirectClient, stream_http, stream_together
from bench.machine import describe_machine
from bench.pinned import check_cores, pin
from bench.rounds import say
from bench.system import allowed_cores, child_environment
from bench.tables import Mark, Section, make_bounds, make_table, show
from support.head import run_gateway

NUM_STREAMS = 64
PAUSE_MS = 50
MANY = {"MAX_OPEN_REQUESTS_PER_CLIENT": "1024"}
TOKENS_PER_S, CPU_MS, FIRST_TOKEN_MS = 3000.0, 0.3, 3.0
EXPLANATION = (
    f"{NUM_STREAMS} streamed chats at once through one gateway process on a core of its own; a scripted head, which emits prepared events "
    "of one token each as fast as gRPC takes them, and the clients share the other core. Processor time is user and system time of the "
    "gateway process, all threads, over tokens delivered; that of gRPC alone is what a bare client of the same streams takes, which does "
    "nothing with what it reads. The time to the first token is that of single requests, medians, through the gateway and straight from "
    "the head."
)


@dataclass(frozen=True, slots=True)
class GatewayEffort:
    rounds: int
    num_tokens: int
    num_paced_tokens: int
    num_singles: int


FULL, QUICK = GatewayEffort(3, 400, 150, 150), GatewayEffort(2, 200, 60, 40)


@dataclass(frozen=True, slots=True)
class Bench:
    """A gateway before a head, and a client of the head."""

    url: str
    process: psutil.Process
    direct: DirectClient


def run_gateway_part(*, is_quick: bool) -> Section:
    check_cores()
    return asyncio.run(_run(QUICK if is_quick else FULL))


async def _run(effort: GatewayEffort) -> Section:
    figures, machine = Figures(), describe_machine()
    async with open_bench() as bench:
        await stream_together(bench.url, NUM_STREAMS, 10)  # connections, code paths
        for number in range(effort.rounds):
            await measure_tokens(bench, effort, figures, number)
            await measure_first_tokens(bench, effort, figures, number)
            say(f"gateway: round {number + 1} of {effort.rounds}")
    return describe(figures, machine)


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    """Head and clients on the first core, the gateway on the last."""
    others, own = allowed_cores()[0], allowed_cores()[-1]
    pin(psutil.Process().pid, others)
    head = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.gateway_head_process",
        str(others),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    assert head.stdout is not None and head.stdin is not None
    try:
        addresses = json.loads(await head.stdout.readline())
        with tempfile.TemporaryDirectory() as home:
            async with run_gateway(addresses["control_plane"], Path(home), MANY) as gateway:
                pin(gateway.process.pid, own)
                direct = DirectClient(addresses["head"])
                yield Bench(gateway.url, psutil.Process(gateway.process.pid), direct)
                await direct.close()
    finally:
        head.stdin.close()
        await head.wait()


async def measure_tokens(bench: Bench, effort: GatewayEffort, figures: Figures, number: int) -> None:
    for name, pause_ms, num_tokens in (("", 0, effort.num_tokens), ("paced ", PAUSE_MS, effort.num_paced_tokens)):
        before = read_cpu_s(bench.process)
        seconds = await stream_together(bench.url, NUM_STREAMS, num_tokens, pause_ms)
        num_all = NUM_STREAMS * num_tokens
        figures.add(f"{name}gateway ms", number, (read_cpu_s(bench.process) - before) / num_all * 1e3)
        figures.add(f"{name}tokens/s", number, num_all / seconds)
    started = time.process_time()
    told = await asyncio.gather(*(bench.direct.stream(effort.num_tokens) for _ in range(NUM_STREAMS)))
    figures.add("gRPC ms", number, (time.process_time() - started) / sum(one.num_tokens for one in told) * 1e3)


async def measure_first_tokens(bench: Bench, effort: GatewayEffort, figures: Figures, number: int) -> None:
    through, direct = list[float](), list[float]()
    for _ in range(effort.num_singles):
        through.append((await stream_http(bench.url, 1)).first_token_s)
        direct.append((await bench.direct.stream(1)).first_token_s)
    figures.add("first token ms", number, statistics.median(through) * 1e3)
    figures.add("first token of the head ms", number, statistics.median(direct) * 1e3)
    figures.add("added ms", number, (statistics.median(through) - statistics.median(direct)) * 1e3)


def read_cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def describe(figures: Figures, machine: str) -> Section:
    names = {
        "tokens/s": "tokens/s through one gateway process",
        "gateway ms": "processor time of the gateway per token, ms",
        "gRPC ms": "the same of a bare gRPC client, ms",
        "paced tokens/s": f"tokens/s where each stream has one every {PAUSE_MS} ms",
        "paced gateway ms": "processor time of the gateway per token then, ms",
        "first token ms": "time to first token through the gateway, ms",
        "first token of the head ms": "time to first token straight from the head, ms",
        "added ms": "added by the gateway, ms",
    }
    rows = [[text, show(figures.median(name), 3)] for name, text in names.items()]
    marks = [
        Mark(f"tokens/s over {NUM_STREAMS} streams", TOKENS_PER_S, figures.median("tokens/s")),
        Mark("processor time per token, ms", CPU_MS, figures.median("gateway ms"), is_most=True),
        Mark("processor time per token of paced streams, ms", CPU_MS, figures.median("paced gateway ms"), is_most=True),
        Mark("added to the time to first token, ms", FIRST_TOKEN_MS, figures.median("added ms"), is_most=True),
    ]
    parts = [machine, EXPLANATION, make_table(["figure", "median"], rows), make_bounds(marks)]
    return Section("\n\n".join(parts), figures.to_json())
