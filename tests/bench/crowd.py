"""Many streams through the gateway's HTTP for a while, then more requests at once than the queue holds.

Every answer is compared with the one that the same request got alone before. What an answer's lines mean is pure (Answer); the figures
are shares, so that 1 means all of them.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.pinned import PinnedCluster
from bench.rounds import say

CHAT_PATH = "/v1/chat/completions"
NUM_STREAMS = 64
NUM_CLIENTS = 7
"""Keys that a burst comes with: one client alone may not hold so many requests open."""
REPORT_S = 20.0
"""Within which heads report that they are idle."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CrowdEffort:
    """Seconds of streams, seconds after which memory counts as warm, requests of the burst, and places at the head for them."""

    duration_s: float
    early_s: float
    num_burst: int
    queue_size: int


@dataclass(slots=True)
class Answer:
    """What came back for one request: tokens and how they ended, or a refusal."""

    status: int = 0
    retry_after: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    is_done: bool = False
    error: Json | None = None

    def note_line(self, line: str) -> None:
        """A line of server-sent events."""
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            self._note_chunk(json.loads(line.removeprefix("data: ")))

    def _note_chunk(self, chunk: Json) -> None:
        self.error = self.error or chunk.get("error")
        for choice in chunk.get("choices", ()):
            self.token_ids += choice.get("token_ids") or []
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    @property
    def is_complete(self) -> bool:
        has_ended = self.is_done and self.finish_reason in {"stop", "length"}
        return self.status == 200 and has_ended and self.error is None and bool(self.token_ids)

    @property
    def is_refusal(self) -> bool:
        """A 429 as OpenAI's clients understand it, that says when to come back."""
        has_time = self.retry_after.isdigit() and int(self.retry_after) >= 1
        error = self.error or {}
        is_told = error.get("type") == "rate_limit_error" and error.get("code") == "rate_limit_exceeded"
        return self.status == 429 and has_time and is_told and bool(error.get("message")) and "param" in error

    def is_like(self, other: "Answer") -> bool:
        return self.token_ids == other.token_ids and self.finish_reason == other.finish_reason


@dataclass(slots=True)
class Tally:
    """Answers of a crowd: how many were complete, and how many of those were what the request got alone."""

    num_asked: int = 0
    num_complete: int = 0
    num_same: int = 0
    num_refused: int = 0
    num_tokens: int = 0
    oddities: list[str] = field(default_factory=list)

    def add(self, name: str, answer: Answer, alone: Answer) -> None:
        self.num_asked += 1
        self.num_complete += answer.is_complete
        self.num_refused += answer.is_refusal
        self.num_tokens += len(answer.token_ids)
        is_same = answer.is_complete and answer.is_like(alone)
        self.num_same += is_same
        if not is_same and not answer.is_refusal:
            self.oddities.append(f"{name}: {describe_difference(answer, alone)}")

    @property
    def num_odd(self) -> int:
        """Neither the answer that was due nor a proper refusal."""
        return self.num_asked - self.num_same - self.num_refused


def describe_difference(answer: Answer, alone: Answer) -> str:
    if not answer.is_complete:
        return f"status {answer.status}, done {answer.is_done}, finish {answer.finish_reason}, error {answer.error}"
    pairs = zip(answer.token_ids, alone.token_ids, strict=False)
    place = next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
    at = min(len(answer.token_ids), len(alone.token_ids)) if place is None else place
    return f"{len(answer.token_ids)} tokens, {len(alone.token_ids)} alone, other ones from token {at}"


@dataclass(slots=True)
class Crowd:
    """What was seen. resident: MiB of each runner, early and afterwards. kv_tokens: of running sequences afterwards, None if not told.
    queue_size: sequences that may run or wait at the head.
    """

    streams: Tally = field(default_factory=Tally)
    burst: Tally = field(default_factory=Tally)
    resident_early: list[float] = field(default_factory=list)
    resident_late: list[float] = field(default_factory=list)
    kv_tokens: int | None = None
    burst_s: float = 0.0
    queue_size: int = 0

    @property
    def growth(self) -> float:
        """Of the runner that grew most: its memory after all, over what it was early."""
        pairs = zip(self.resident_late, self.resident_early, strict=True)
        return max(late / early for late, early in pairs)


def list_bodies(model_id: str) -> list[Json]:
    """A dozen different requests: prompts of 30 to about 800 tokens, answers of 8 to 160."""
    text = (Path(__file__).parent / "corpus.txt").read_text()
    short = ["Hello! Who are you?", "What is the capital of France?", "Count from one to thirty.", "Name ten animals."]
    sizes = [(0, 400), (400, 900), (1300, 1400), (2700, 2000), (4700, 2600), (7300, 3200), (0, 3400), (9000, 700)]
    prompts = [*short, *(f"What is this about?\n\n{text[at : at + size]}" for at, size in sizes)]
    lengths = [24, 8, 160, 80, 48, 64, 32, 96, 40, 16, 128, 64]
    return [make_body(model_id, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]


def make_body(model_id: str, prompt: str, max_tokens: int) -> Json:
    messages = [{"role": "user", "content": prompt}]
    fixed = {"stream": True, "temperature": 0, "return_token_ids": True}
    return {"model": model_id, "messages": messages, "max_tokens": max_tokens, **fixed}


async def ask_gateway(http: httpx.AsyncClient, body: Json, key: str = "none") -> Answer:
    answer = Answer()
    try:
        async with http.stream("POST", CHAT_PATH, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
            answer.status = response.status_code
            answer.retry_after = response.headers.get("retry-after", "")
            if response.status_code == 200:
                async for line in response.aiter_lines():
                    answer.note_line(line)
            else:
                answer.error = json.loads(await response.aread()).get("error")
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        answer.error = {"message": repr(error)}
    return answer


async def measure_crowd(cluster: PinnedCluster, effort: CrowdEffort) -> Crowd:
    """A cluster whose head has room for all streams to run or wait, and not for the burst."""
    crowd = Crowd(queue_size=effort.queue_size)
    bounds = httpx.Limits(max_connections=None, max_keepalive_connections=NUM_STREAMS)
    async with httpx.AsyncClient(base_url=cluster.cluster.url, limits=bounds, timeout=600, trust_env=False) as http:
        bodies = list_bodies(cluster.model.model_id)
        alone = [await ask_gateway(http, body) for body in bodies]
        say(f"{len(bodies)} requests alone: {[len(answer.token_ids) for answer in alone]} tokens")
        await asyncio.gather(
            _stream(http, bodies, alone, effort, crowd.streams), _note_memory(cluster, effort.early_s, crowd)
        )
        crowd.resident_late = cluster.resident_mib()
        say(f"{NUM_STREAMS} streams: {crowd.streams.num_asked} answers, {crowd.streams.num_same} as alone")
        crowd.kv_tokens = await wait_for_idle(cluster)
        await _burst(http, bodies, alone, effort.num_burst, crowd)
        say(f"burst: {crowd.burst.num_same} answered, {crowd.burst.num_refused} refused of {crowd.burst.num_asked}")
    return crowd


async def _stream(
    http: httpx.AsyncClient, bodies: Sequence[Json], alone: Sequence[Answer], effort: CrowdEffort, tally: Tally
) -> None:
    """Every stream asks one request after the other until the time is over, and finishes its last."""
    deadline = time.monotonic() + effort.duration_s

    async def go_on(stream: int) -> None:
        turn = stream
        while time.monotonic() < deadline:
            chosen = turn % len(bodies)
            tally.add(f"request {chosen}", await ask_gateway(http, bodies[chosen]), alone[chosen])
            turn += NUM_CLIENTS

    await asyncio.gather(*(go_on(stream) for stream in range(NUM_STREAMS)))


async def _note_memory(cluster: PinnedCluster, early_s: float, crowd: Crowd) -> None:
    await asyncio.sleep(early_s)
    crowd.resident_early = cluster.resident_mib()


async def _burst(
    http: httpx.AsyncClient, bodies: Sequence[Json], alone: Sequence[Answer], num_requests: int, crowd: Crowd
) -> None:
    """All at once, of the requests with short prompts and several clients."""
    chosen = [index for index, body in enumerate(bodies) if len(body["messages"][0]["content"]) < 100]
    indexes = [chosen[number % len(chosen)] for number in range(num_requests)]
    started = time.monotonic()
    asking = [ask_gateway(http, bodies[at], f"client-{number % NUM_CLIENTS}") for number, at in enumerate(indexes)]
    for at, answer in zip(indexes, await asyncio.gather(*asking), strict=True):
        crowd.burst.add(f"request {at}", answer, alone[at])
    crowd.burst_s = time.monotonic() - started


async def wait_for_idle(cluster: PinnedCluster) -> int | None:
    """KV tokens of running sequences in the head's last report: 0 as soon as one says so; None where reports do not come."""
    deadline = time.monotonic() + REPORT_S
    while (num_tokens := (await asyncio.to_thread(cluster.read_load)).get("kv_running_tokens")) is not None:
        if not num_tokens or time.monotonic() > deadline:
            return int(num_tokens)
        await asyncio.sleep(0.5)  # reports of other processes have no event to wait for
    return None
