"""The tensor part: one stream on one rank and on two, each with one thread on a core of its own, as ratios within one run.

Clusters are opened one after another and in turn, so that none that idles takes time from one that is measured: two ranks wait for each
other some 33 times a token, and each waits for what the other loses.

Two ranks can only gain what the machine gives to two busy cores. So these are measured too: the model on one rank on either core, both
asked at the same time. Two ranks that never sent or repeated anything would still wait for the slower core at every token.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import Figures
from bench.machine import describe_machine
from bench.made_models import VOCAB_SIZE, make_1b
from bench.pinned import Layout, Model, PinnedCluster, check_cores, open_pinned
from bench.rounds import in_turn, say
from bench.streams import Stream
from bench.tables import Mark, Section, make_bounds, make_table, show

PLAIN = {"PACELINE_SPECULATION": "off"}
ONE = Layout("1 rank", 1, PLAIN)
OTHER = Layout("1 rank on the other core", 1, PLAIN, first_core=0)
TWO = Layout("2 ranks", 1, PLAIN, num_ranks=2)
DECODE, PREFILL = "decode tokens/s", "prefill tokens/s"
TOGETHER, SLOWER = "1 rank, both cores busy", "the slower of two cores"
EXPLANATION = (
    "A cluster with one rank on one core and one with two ranks on a core each (ring over TCP on loopback), one thread a rank, opened and "
    "asked in turn at their heads over gRPC, one stream at a time; ratios are taken within a round and are medians over rounds. Decode is "
    "1 / median time between tokens, prefill the prompt's tokens / time to the first token, everything included: sampling, telling the "
    "client, and whoever asks share the cores.",
    "The machine's limit: the model on one rank on either core, both asked at once; of each pair of tokens, and of prompts, the slower "
    "one's time. Twice that speed is what two ranks would reach that wait for each other at every token and never send or repeat anything.",
)


@dataclass(frozen=True, slots=True)
class TensorEffort:
    """How much is asked: so many rounds, in each of which every cluster is asked so many times."""

    rounds: int
    num_asked: int
    prompt_tokens: int
    num_tokens: int


FULL, QUICK = TensorEffort(4, 3, 256, 64), TensorEffort(1, 3, 256, 64)


@dataclass(slots=True)
class Outcome:
    """What was measured; loaded_bytes by cluster and rank; num_different: answers of two ranks that are not those of one."""

    title: str
    effort: TensorEffort
    figures: Figures = field(default_factory=Figures)
    loaded_bytes: dict[str, list[int]] = field(default_factory=dict)
    num_different: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "figures": self.figures.to_json(),
            "loaded_bytes": self.loaded_bytes,
            "num_different": self.num_different,
        }


def run_tensor(home: Path, *, is_quick: bool) -> Section:
    check_cores()
    return asyncio.run(_run(home, QUICK if is_quick else FULL))


async def _run(home: Path, effort: TensorEffort) -> Section:
    started = time.monotonic()
    made = await asyncio.to_thread(make_1b)
    model = Model(made.title, made.folder, "random-1b", VOCAB_SIZE)
    outcome = Outcome(model.title, effort)
    for number in range(effort.rounds):
        answers = {
            layout.name: await visit(layout, model, home, number, outcome) for layout in in_turn([ONE, TWO], number)
        }
        outcome.num_different += sum(
            one.token_ids != two.token_ids for one, two in zip(answers[ONE.name], answers[TWO.name], strict=True)
        )
        await visit_both_cores(model, home, number, outcome)
        say(f"{model.title}: round {number + 1} of {effort.rounds} done")
    say(f"tensor: {time.monotonic() - started:.0f} s")
    return Section("\n\n".join([describe_machine(), *EXPLANATION, *describe_outcome(outcome)]), outcome.to_json())


async def visit(layout: Layout, model: Model, home: Path, number: int, outcome: Outcome) -> list[Stream]:
    """Open a cluster, ask it the round's prompts, and close it. Returns its answers."""
    effort = outcome.effort
    async with open_pinned(layout, model, home / "tensor") as cluster:
        outcome.loaded_bytes[layout.name] = cluster.loaded_bytes()
        await warm_up(cluster, effort)
        answers = [
            await cluster.ask(cluster.draw_prompt(f"ranks {number} {index}", effort.prompt_tokens), effort.num_tokens)
            for index in range(effort.num_asked)
        ]
        await asyncio.to_thread(cluster.check_alive)
    for index, stream in enumerate(answers):
        place = number * effort.num_asked + index
        outcome.figures.add(f"{DECODE}, {layout.name}", place, 1 / statistics.median(list_gaps(stream)))
        outcome.figures.add(f"{PREFILL}, {layout.name}", place, effort.prompt_tokens / stream.first_token_s)
    return answers


async def visit_both_cores(model: Model, home: Path, number: int, outcome: Outcome) -> None:
    """The same prompts on one rank on either core at once."""
    effort = outcome.effort
    async with AsyncExitStack() as stack:
        pair = [
            await stack.enter_async_context(open_pinned(layout, model, home / f"tensor-{index}"))
            for index, layout in enumerate((ONE, OTHER))
        ]
        for cluster in pair:
            await warm_up(cluster, effort)
        for index in range(effort.num_asked):
            prompt = pair[0].draw_prompt(f"ranks {number} {index}", effort.prompt_tokens)
            streams = await asyncio.gather(*(cluster.ask(prompt, effort.num_tokens) for cluster in pair))
            note_both(outcome.figures, number * effort.num_asked + index, streams, effort)


def note_both(figures: Figures, number: int, streams: Sequence[Stream], effort: TensorEffort) -> None:
    """Of two streams that were answered at once: what one core gives, and what both give that wait for each other at every token."""
    gaps = [list_gaps(stream) for stream in streams]
    slower = [max(pair) for pair in zip(*gaps, strict=False)]
    figures.add(f"{DECODE}, {TOGETHER}", number, 1 / statistics.median(gaps[0]))
    figures.add(f"{DECODE}, {SLOWER}", number, 1 / statistics.median(slower))
    times = [stream.first_token_s for stream in streams]
    figures.add(f"{PREFILL}, {TOGETHER}", number, effort.prompt_tokens / times[0])
    figures.add(f"{PREFILL}, {SLOWER}", number, effort.prompt_tokens / max(times))


async def warm_up(cluster: PinnedCluster, effort: TensorEffort) -> None:
    await cluster.ask(cluster.draw_prompt("warm-up", effort.prompt_tokens // 4), 16)


def list_gaps(stream: Stream) -> list[float]:
    """Seconds between a stream's tokens."""
    return [later - earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)]


def describe_outcome(outcome: Outcome) -> list[str]:
    """The model's part of the section, as paragraphs."""
    effort = outcome.effort
    return [
        f"### {outcome.title}",
        f"{effort.rounds} rounds of {effort.num_asked} answers; prompts of {effort.prompt_tokens} tokens, {effort.num_tokens} tokens "
        "decoded greedily.",
        make_bounds(make_tensor_marks(outcome)),
        make_speed_table(outcome.figures),
        f"Weights per rank: {_show_bytes(outcome.loaded_bytes[TWO.name])}, against {_show_bytes(outcome.loaded_bytes[ONE.name])} on one. "
        f"Answers of two ranks that differ from those of one: {outcome.num_different} of {effort.rounds * effort.num_asked} (sums are "
        "rounded elsewhere).",
    ]


def make_tensor_marks(outcome: Outcome) -> list[Mark]:
    figures, whole = outcome.figures, outcome.loaded_bytes[ONE.name][0]
    share = max(outcome.loaded_bytes[TWO.name]) / whole
    return [
        Mark("decode, 2 ranks / 1", 1.7, figures.ratio(f"{DECODE}, {TWO.name}", f"{DECODE}, {ONE.name}")),
        Mark("prefill, 2 ranks / 1", 1.8, figures.ratio(f"{PREFILL}, {TWO.name}", f"{PREFILL}, {ONE.name}")),
        Mark("weight bytes of a rank / of the whole", 0.52, share, is_most=True),
    ]


def find_limit(figures: Figures, what: str) -> float | None:
    """What two ranks would gain over one that did nothing but wait for the slower one."""
    kept = figures.ratio(f"{what}, {SLOWER}", f"{what}, {ONE.name}")
    return 2 * kept if kept else None


def make_speed_table(figures: Figures) -> str:
    rows = []
    for what in (DECODE, PREFILL):
        one, two, together, slower = (
            show(figures.median(f"{what}, {name}")) for name in (ONE.name, TWO.name, TOGETHER, SLOWER)
        )
        ratio, limit = figures.ratio(f"{what}, {TWO.name}", f"{what}, {ONE.name}"), find_limit(figures, what)
        reached = ratio / limit if ratio and limit else None
        rows.append([what, one, two, show(ratio, 2), together, slower, show(limit, 2), show(reached, 2)])
    columns = ["", ONE.name, TWO.name, "ratio", TOGETHER, SLOWER, "the machine's limit", "ratio / limit"]
    return make_table(columns, rows)


def _show_bytes(sizes: Sequence[int]) -> str:
    return " + ".join(f"{size / (1 << 20):.0f}" for size in sizes) + " MiB"
