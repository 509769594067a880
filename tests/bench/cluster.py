"""The cluster part: clusters of 1, 2 and 3 workers against mlx-lm in one process, measured in turn in one run.

The machines this runs on are shared, so figures of one column drift; the ratios are medians over rounds in which every system
answered the same request one after the other.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.machine import describe_machine
from bench.tables import Section
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import GenerateRequest, GenerationCompleted, Limits, TokenIds
from paceline_services.ids import ModelId
from support.cluster import Cluster
from support.demo import demo_folder, demo_gguf

MODEL_ID = "smollm2-135m-instruct"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One timed answer: seconds to the first token, tokens per second after it, and the token ids."""

    token_ids: list[int]
    first_token_s: float
    decode_tokens_per_s: float
    link_ms_per_step: float = 0.0


@dataclass(slots=True)
class System:
    """One column of the table."""

    name: str
    ask: Any
    resident_mib: Any
    answers: list[Answer] = field(default_factory=list)


def time_answer(token_ids: list[int], first_s: float, total_s: float, link_ms: float = 0.0) -> Answer:
    return Answer(token_ids, first_s, (len(token_ids) - 1) / max(total_s - first_s, 1e-9), link_ms)


@asynccontextmanager
async def open_reference(folder: Path) -> AsyncIterator[System]:
    """mlx-lm in one process."""
    script = Path(__file__).parents[1] / "support" / "reference.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        str(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin and process.stdout

    async def ask(prompt: list[int], num_tokens: int) -> Answer:
        assert process.stdin and process.stdout
        request = {"token_ids": prompt, "max_tokens": num_tokens, "ignore_eos": True}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(await process.stdout.readline())
        return time_answer(answer["token_ids"], answer["first_token_s"], answer["total_s"])

    yield System("mlx-lm, one process", ask, lambda: [psutil.Process(process.pid).memory_info().rss / MIB])
    process.stdin.close()
    await process.wait()


@asynccontextmanager
async def open_cluster(gguf: Path, workers: int, home: Path) -> AsyncIterator[System]:
    """A whole cluster; asked at its head over gRPC, as the gateway asks it."""
    cluster = Cluster(home, workers=workers, model=str(gguf), model_id=MODEL_ID)
    await asyncio.to_thread(cluster.start)
    try:
        shards = cluster.state()["instances"][0]["shards"]
        client = GenerationClient(shards[-1]["address"])

        async def ask(prompt: list[int], num_tokens: int) -> Answer:
            return await ask_head(client, prompt, num_tokens)

        name = f"paceline, {workers} worker{'s' if workers > 1 else ''}"
        yield System(name, ask, lambda: [psutil.Process(shard["pid"]).memory_info().rss / MIB for shard in shards])
        await client.close()
    finally:
        await asyncio.to_thread(cluster.stop)


async def ask_head(client: GenerationClient, prompt: list[int], num_tokens: int) -> Answer:
    request = GenerateRequest(
        ModelId(MODEL_ID), token_ids=TokenIds(tuple(prompt)), limits=Limits(max_tokens=num_tokens, ignore_eos=True)
    )
    started, first_s, tokens = time.perf_counter(), 0.0, list[int]()
    link_ms = 0.0
    async for event in client.generate(request, timeout_s=600):
        if isinstance(event, GenerationCompleted):
            link_ms = event.link_duration_ms / max(1, event.num_steps)
        elif new := getattr(event, "token_ids", ()):
            first_s = first_s or time.perf_counter() - started
            tokens.extend(new)
    return time_answer(tokens, first_s, time.perf_counter() - started, link_ms)


async def measure(systems: list[System], prompt: list[int], num_tokens: int, rounds: int) -> None:
    for system in systems:
        await system.ask(prompt, 4)
    for number in range(rounds):
        for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
            system.answers.append(await system.ask(prompt, num_tokens))
            print(f"round {number + 1}/{rounds}: {system.name}", file=sys.stderr)


def ratio(systems: list[System], index: int, read: Any) -> float:
    """Median over rounds of this system's figure over that of the first system."""
    pairs = zip(systems[index].answers, systems[0].answers, strict=True)
    return float(statistics.median(read(mine) / read(base) for mine, base in pairs))


def render(systems: list[System], prompt_tokens: int, num_tokens: int, rounds: int) -> str:
    rows = [
        "| system | decode tokens/s | ratio | first token s | ratio | RSS per runner MiB | link ms per step | same tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for index, system in enumerate(systems):
        speed = statistics.median(answer.decode_tokens_per_s for answer in system.answers)
        first = statistics.median(answer.first_token_s for answer in system.answers)
        link = statistics.median(answer.link_ms_per_step for answer in system.answers)
        same = all(
            mine.token_ids == base.token_ids for mine, base in zip(system.answers, systems[0].answers, strict=True)
        )
        rows.append(
            f"| {system.name} | {speed:.2f} | {ratio(systems, index, lambda a: a.decode_tokens_per_s):.3f} "
            f"| {first:.2f} | {ratio(systems, index, lambda a: a.first_token_s):.3f} "
            f"| {' + '.join(f'{rss:.0f}' for rss in system.resident_mib())} | {link:.2f} | {'yes' if same else 'NO'} |"
        )
    return "\n".join(
        [
            describe_machine(),
            "",
            f"Prompt of {prompt_tokens} tokens, {num_tokens} tokens decoded greedily, {rounds} rounds; medians; ratios against the "
            "first row, round by round. mlx-lm runs stock MLX, the workers what they choose by themselves.",
            "",
            *rows,
        ]
    )


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How many workers, rounds and tokens, and where the clusters keep what they store."""

    workers: tuple[int, ...]
    rounds: int
    num_tokens: int
    prompt_tokens: int
    home: Path


def run_cluster(options: ClusterOptions) -> Section:
    return asyncio.run(_run(options))


async def _run(options: ClusterOptions) -> Section:
    gguf, folder = await asyncio.to_thread(demo_gguf), await asyncio.to_thread(demo_folder)
    prompt = [1, *(3 + (index * 7919) % 40000 for index in range(options.prompt_tokens - 1))]
    async with AsyncExitStack() as stack:
        systems = [await stack.enter_async_context(open_reference(folder))]
        for workers in options.workers:
            cluster = open_cluster(gguf, workers, options.home / f"bench-{workers}")
            systems += [await stack.enter_async_context(cluster)]
        await measure(systems, prompt, options.num_tokens, options.rounds)
        values = {system.name: [asdict(answer) for answer in system.answers] for system in systems}
        return Section(render(systems, len(prompt), options.num_tokens, options.rounds), values)
