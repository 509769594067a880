"""What is asked of clusters with one and with two stages: many streams, a long prompt beside them, a chat's turns.

Every case is one round: it adds its figures under names that the tables read. Prompts are drawn anew for every round, as the clusters
keep what they have computed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import Figures
from bench.pinned import PinnedCluster
from bench.rounds import in_turn
from bench.streams import Stream, count_rate, find_gaps, make_request

MANY = 8
FEW = 4
PROMPT_TOKENS = 64
TURN_TOKENS = 16
NEW_TOKENS = 32
QUIET_S = 1.5


@dataclass(frozen=True, slots=True)
class LoadEffort:
    """How much is asked. num_tokens: of each of many streams; stream_tokens: the most of those beside a long prompt.

    is_brief: clusters that decide no mark are left out. Many streams need tokens enough to be answered all at once: while they start,
    the first of them go on for every few tokens of the others' prompts.
    """

    rounds: int
    num_tokens: int = 128
    long_tokens: int = 2000
    stream_tokens: int = 440
    is_brief: bool = False


def rate_name(cluster: str, num_streams: int) -> str:
    return f"tokens/s, {num_streams} streams, {cluster}"


def gap_name(kind: str, cluster: str) -> str:
    """kind: worst / median, worst / quiet, worst ms, median ms, quiet ms, first token s, ended early."""
    return f"beside a long prompt: {kind}, {cluster}"


def turn_name(turn: str, cluster: str) -> str:
    """turn: first, second."""
    return f"{turn} turn's first token s, {cluster}"


def found_name(cluster: str) -> str:
    return f"second turn's tokens found, {cluster}"


async def warm_up(cluster: PinnedCluster, effort: LoadEffort) -> None:
    """Steps of every size once: first ones allocate, and the scheduler learns what they cost."""
    prompts = [cluster.draw_prompt(f"warm-up {index}", PROMPT_TOKENS) for index in range(MANY)]
    await cluster.ask(prompts[0], 16)
    await cluster.ask_together(prompts[1:], 16)
    await cluster.ask(cluster.draw_prompt("long warm-up", effort.long_tokens // 8), 4)


async def measure_rates(clusters: Sequence[PinnedCluster], effort: LoadEffort, number: int, figures: Figures) -> None:
    """Many streams, and one of them alone, on every cluster."""
    for cluster in in_turn(clusters, number):
        prompts = [cluster.draw_prompt(f"many {number} {index}", PROMPT_TOKENS) for index in range(MANY)]
        alone = cluster.draw_prompt(f"alone {number}", PROMPT_TOKENS)
        figures.add(rate_name(cluster.name, 1), number, count_rate([await cluster.ask(alone, effort.num_tokens)]))
        figures.add(
            rate_name(cluster.name, MANY), number, count_rate(await cluster.ask_together(prompts, effort.num_tokens))
        )


async def measure_gaps(clusters: Sequence[PinnedCluster], effort: LoadEffort, number: int, figures: Figures) -> None:
    """A fresh long prompt beside a few streams that decode, on every cluster."""
    for cluster in in_turn(clusters, number):
        streams, late = await disturb(cluster, effort, number)
        gaps = find_gaps(streams, late.sent)
        for kind, value in {
            "worst / median": gaps.ratio,
            "worst / quiet": gaps.quiet_ratio,
            "worst ms": gaps.worst_s * 1e3,
            "median ms": gaps.median_s * 1e3,
            "quiet ms": gaps.quiet_median_s * 1e3,
            "first token s": late.first_token_s,
            "ended early": sum(stream.completed is not None for stream in streams),
        }.items():
            figures.add(gap_name(kind, cluster.name), number, value)


async def disturb(cluster: PinnedCluster, effort: LoadEffort, number: int) -> tuple[list[Stream], Stream]:
    """The streams, which are cancelled once the long prompt is answered, and the long prompt's own."""
    enough = asyncio.Event()
    streams = [Stream() for _ in range(FEW)]
    async with asyncio.TaskGroup() as group:
        for index, stream in enumerate(streams):
            prompt = cluster.draw_prompt(f"few {number} {index}", PROMPT_TOKENS)
            request = make_request(cluster.model.model_id, prompt, effort.stream_tokens)
            group.create_task(stream.follow(cluster.client, request, enough))
        await asyncio.gather(*(stream.has_begun.wait() for stream in streams))
        await asyncio.sleep(QUIET_S)  # so long they are measured undisturbed
        late = await cluster.ask(cluster.draw_prompt(f"beside {number}", effort.long_tokens), 4)
        enough.set()
    return streams, late


async def measure_turns(clusters: Sequence[PinnedCluster], effort: LoadEffort, number: int, figures: Figures) -> None:
    """A fresh long prompt on every cluster, then the same chat's second turn."""
    for cluster in in_turn(clusters, number):
        prompt = cluster.draw_prompt(f"turns {number}", effort.long_tokens)
        first = await cluster.ask(prompt, TURN_TOKENS)
        new = cluster.draw_prompt(f"new {number}", NEW_TOKENS)
        second = await cluster.ask([*prompt, *first.token_ids, *new], TURN_TOKENS)
        figures.add(turn_name("first", cluster.name), number, first.first_token_s)
        figures.add(turn_name("second", cluster.name), number, second.first_token_s)
        found = second.completed.num_cached_tokens if second.completed else 0
        figures.add(found_name(cluster.name), number, found)
