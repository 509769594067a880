"""Answers as streams of timed events: how they are asked, and what their times say.

A stream's times are those at which its events came to the client; an event may bring several tokens. What is computed from times is
pure, so that tests can say it by hand.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import (
    ChoiceDelta,
    Conversation,
    GenerateRequest,
    GenerationCompleted,
    Limits,
    Message,
    TokenIds,
)
from paceline_services.ids import ModelId

TIMEOUT_S = 600.0
FIRST_ORDINARY_TOKEN = 300
"""Below are special tokens and single bytes, in every vocabulary that is measured."""


@dataclass(slots=True)
class Stream:
    """One answer as it came: when it was asked, when its events came, how many tokens each brought; seconds of one clock."""

    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    completed: GenerationCompleted | None = None
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.sent

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.times[-1] - self.times[0]

    async def follow(
        self, client: GenerationClient, request: GenerateRequest, enough: asyncio.Event | None = None
    ) -> None:
        """Ask a head and note what comes, to the end or until there is enough: then the request is cancelled."""
        self.sent = time.perf_counter()
        async with aclosing(client.generate(request, timeout_s=TIMEOUT_S)) as events:
            async for event in events:
                if isinstance(event, GenerationCompleted):
                    self.completed = event
                elif isinstance(event, ChoiceDelta):
                    self.text += event.text
                    self.note(time.perf_counter(), event.token_ids)
                if enough and enough.is_set():
                    return

    def note(self, now: float, token_ids: Sequence[int]) -> None:
        """An event came; one without tokens, the rest of a text, is none of these."""
        if not token_ids:
            return
        self.times.append(now)
        self.counts.append(len(token_ids))
        self.token_ids.extend(token_ids)
        self.has_begun.set()


async def ask(client: GenerationClient, request: GenerateRequest) -> Stream:
    stream = Stream()
    await stream.follow(client, request)
    return stream


async def ask_together(client: GenerationClient, requests: Sequence[GenerateRequest]) -> list[Stream]:
    """All at once; returns when every one is answered."""
    return list(await asyncio.gather(*(ask(client, request) for request in requests)))


def draw_prompt(name: str, num_tokens: int, vocab_size: int) -> list[int]:
    """Token ids without meaning, the same for the same name; prompts of different names begin differently and repeat nothing."""
    return [1, *random.Random(name).sample(range(FIRST_ORDINARY_TOKEN, vocab_size), num_tokens - 1)]


def make_request(model_id: str, prompt: Sequence[int], num_tokens: int) -> GenerateRequest:
    """So many tokens after a prompt, greedily, whatever the model would like."""
    limits = Limits(max_tokens=num_tokens, ignore_eos=True)
    return GenerateRequest(ModelId(model_id), token_ids=TokenIds(tuple(prompt)), limits=limits)


def make_chat(model_id: str, content: str, max_tokens: int) -> GenerateRequest:
    """A user's message in the model's chat template, answered greedily up to the model's own end."""
    talk = Conversation((Message("user", content),))
    return GenerateRequest(ModelId(model_id), conversation=talk, limits=Limits(max_tokens=max_tokens))


# -- what times say --


def count_rate(streams: Sequence[Stream]) -> float | None:
    """Tokens per second of all streams together, from the last one's first token to the first one's end; None without such a time."""
    begin, end = max(stream.times[0] for stream in streams), min(stream.times[-1] for stream in streams)
    if end <= begin:
        return None
    return sum(_count_between(stream, begin, end) for stream in streams) / (end - begin)


def _count_between(stream: Stream, begin: float, end: float) -> int:
    return sum(count for at, count in zip(stream.times, stream.counts, strict=True) if begin < at <= end)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between neighbouring events of a stream, over several streams: all of them, and those before something happened."""

    median_s: float
    worst_s: float
    quiet_median_s: float

    @property
    def ratio(self) -> float:
        return self.worst_s / self.median_s

    @property
    def quiet_ratio(self) -> float:
        return self.worst_s / self.quiet_median_s


def find_gaps(streams: Sequence[Stream], event: float) -> Gaps:
    """Of the time in which all streams had begun; event: when what may disturb them was asked."""
    begin = max(stream.times[0] for stream in streams)
    pairs = [
        pair for stream in streams for pair in zip(stream.times, stream.times[1:], strict=False) if pair[0] >= begin
    ]
    gaps = [later - earlier for earlier, later in pairs]
    quiet = [later - earlier for earlier, later in pairs if later <= event]
    return Gaps(statistics.median(gaps), max(gaps), statistics.median(quiet or gaps))


def share_repeated(source: str, answer: str) -> float:
    """Share of an answer's words that stand in the source in the same order."""
    words = answer.split()
    blocks = SequenceMatcher(None, source.split(), words, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(words) if words else 0.0


def share_predictable(prompt: Sequence[int], token_ids: Sequence[int], num_matched: int = 3) -> float:
    """Share of an answer's tokens that followed the same tokens the last time those occurred, in prompt or answer."""
    places: dict[tuple[int, ...], int] = {}
    tokens = list(prompt)
    for at in range(num_matched, len(tokens)):
        places[tuple(tokens[at - num_matched : at])] = tokens[at]
    num_right = 0
    for token in token_ids:
        key = tuple(tokens[-num_matched:])
        num_right += places.get(key) == token
        places[key] = token
        tokens.append(token)
    return num_right / len(token_ids)
