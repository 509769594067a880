"""The tensor part: one stream on one rank and on two, each with one thread on a core of its own, as ratios within one run.

Two ranks can only gain what the machine gives to two busy cores: they share its memory and maybe more. So both cores are measured too:
the same model on two clusters of one rank each, asked alone and at the same time. 2 / (time together / time alone) is what two ranks
that never wait for each other would gain.
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
ONE, OTHER, TWO = "1 rank", "1 rank on the other core", "2 ranks"
DECODE, PREFILL = "decode tokens/s", "prefill tokens/s"
TOGETHER = ", both at once"
EXPLANATION = (
    "A cluster with one rank on one core and one with two ranks on a core each (ring over TCP on loopback), one thread a rank, asked in "
    "turn at their heads over gRPC, one stream at a time; ratios are taken within a round and are medians over rounds. Decode is 1 / "
    "median time between tokens, prefill the prompt's tokens / time to the first token, everything included: sampling, telling the "
    "client, and whoever asks share the cores.",
    "The machine's limit: the model on one rank on either core, asked alone and both at once. Twice the speed that each of the two keeps "
    "is what two ranks would gain that never waited, sent or repeated anything.",
)


@dataclass(frozen=True, slots=True)
class TensorEffort:
    """How much is asked in each round."""

    rounds: int
    prompt_tokens: int
    num_tokens: int


FULL, QUICK = TensorEffort(7, 512, 64), TensorEffort(2, 256, 32)


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
    layouts = (Layout(OTHER, 1, PLAIN, first_core=0), Layout(ONE, 1, PLAIN), Layout(TWO, 1, PLAIN, num_ranks=2))
    async with AsyncExitStack() as stack:
        clusters = [
            await stack.enter_async_context(open_pinned(layout, model, home / f"tensor-{index}"))
            for index, layout in enumerate(layouts)
        ]
        for cluster in clusters:
            outcome.loaded_bytes[cluster.name] = cluster.loaded_bytes()
            await cluster.ask(cluster.draw_prompt("warm-up", effort.prompt_tokens), 16)
        for number in range(effort.rounds):
            await measure_round(clusters, number, outcome)
            say(f"{model.title}: round {number + 1} of {effort.rounds} done")
        for cluster in clusters:
            await asyncio.to_thread(cluster.check_alive)
    say(f"tensor: {time.monotonic() - started:.0f} s")
    return Section("\n\n".join([describe_machine(), *EXPLANATION, *describe_outcome(outcome)]), outcome.to_json())


async def measure_round(clusters: Sequence[PinnedCluster], number: int, outcome: Outcome) -> None:
    """The same prompt on one rank and on two; then others on both cores at once."""
    other, one, two = clusters
    effort, figures = outcome.effort, outcome.figures
    answers: dict[str, Stream] = {}
    for cluster in in_turn([one, two], number):
        prompt = cluster.draw_prompt(f"tensor {number}", effort.prompt_tokens)
        answers[cluster.name] = await cluster.ask(prompt, effort.num_tokens)
        note(figures, cluster.name, number, answers[cluster.name], effort)
    outcome.num_different += answers[ONE].token_ids != answers[TWO].token_ids
    pair = [other, one]
    together = await asyncio.gather(
        *(each.ask(each.draw_prompt(f"both {number}", effort.prompt_tokens), effort.num_tokens) for each in pair)
    )
    for cluster, stream in zip(pair, together, strict=True):
        note(figures, cluster.name + TOGETHER, number, stream, effort)


def note(figures: Figures, name: str, number: int, stream: Stream, effort: TensorEffort) -> None:
    gaps = [later - earlier for earlier, later in zip(stream.times, stream.times[1:], strict=False)]
    figures.add(f"{DECODE}, {name}", number, 1 / statistics.median(gaps))
    figures.add(f"{PREFILL}, {name}", number, effort.prompt_tokens / stream.first_token_s)


def describe_outcome(outcome: Outcome) -> list[str]:
    """The model's part of the section, as paragraphs."""
    effort = outcome.effort
    return [
        f"### {outcome.title}",
        f"{effort.rounds} rounds; prompts of {effort.prompt_tokens} tokens, {effort.num_tokens} tokens decoded greedily.",
        make_bounds(make_tensor_marks(outcome)),
        make_speed_table(outcome.figures),
        f"Weights per rank: {_show_bytes(outcome.loaded_bytes[TWO])}, against {_show_bytes(outcome.loaded_bytes[ONE])} on one. Answers of "
        f"two ranks that differ from those of one, in {effort.rounds} rounds: {outcome.num_different} (sums are rounded elsewhere).",
    ]


def make_tensor_marks(outcome: Outcome) -> list[Mark]:
    figures, whole = outcome.figures, outcome.loaded_bytes[ONE][0]
    share = max(outcome.loaded_bytes[TWO]) / whole
    return [
        Mark("decode, 2 ranks / 1", 1.7, figures.ratio(f"{DECODE}, {TWO}", f"{DECODE}, {ONE}")),
        Mark("prefill, 2 ranks / 1", 1.8, figures.ratio(f"{PREFILL}, {TWO}", f"{PREFILL}, {ONE}")),
        Mark("weight bytes of a rank / of the whole", 0.52, share, is_most=True),
    ]


def find_limit(figures: Figures, what: str) -> float | None:
    """What two ranks would gain that never wait for each other: twice the speed that a core keeps while the other one works too."""
    kept = figures.ratio(f"{what}, {ONE}{TOGETHER}", f"{what}, {ONE}")
    return 2 * kept if kept else None


def make_speed_table(figures: Figures) -> str:
    rows = []
    for what in (DECODE, PREFILL):
        one, two, together = (figures.median(f"{what}, {name}") for name in (ONE, TWO, ONE + TOGETHER))
        ratio, limit = figures.ratio(f"{what}, {TWO}", f"{what}, {ONE}"), find_limit(figures, what)
        reached = ratio / limit if ratio and limit else None
        rows.append([what, *map(show, (one, two)), show(ratio, 2), show(together), show(limit, 2), show(reached, 2)])
    columns = ["", ONE, TWO, "ratio", f"{ONE}{TOGETHER}", "the machine's limit", "ratio / limit"]
    return make_table(columns, rows)


def _show_bytes(sizes: Sequence[int]) -> str:
    return " + ".join(f"{size / (1 << 20):.0f}" for size in sizes) + " MiB"
