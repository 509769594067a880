"""The load part: many requests at once on stages that have a core each, as ratios within one run.

Clusters with one and with two stages stand side by side and are asked in turn, round by round; figures drift with the machine, ratios
within a round do not. The cases are in load_cases.py (streams, long prompts, chats), editing.py (guessing ahead) and crowd.py (the
gateway); what is said of them in load_tables.py.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil

from bench.crowd import CrowdEffort, measure_crowd
from bench.editing import Task, find_loops, list_editing, measure_editing
from bench.load_cases import LoadEffort, measure_gaps, measure_rates, measure_turns, warm_up
from bench.load_tables import GUESSING, ONE, TWO, Outcome, describe_outcome
from bench.machine import describe_machine
from bench.made_models import VOCAB_SIZE, make_1b
from bench.pinned import Layout, Model, PinnedCluster, check_cores, open_pinned
from bench.rounds import say
from bench.system import UnavailableError
from bench.tables import Section
from paceline_services.errors import PacelineError
from support.demo import demo_gguf

MAX_RUNNING, MAX_WAITING = 32, 64
PLAIN = {"PACELINE_SPECULATION": "off"}
QUEUE_SIZE = MAX_RUNNING + MAX_WAITING
# Room for 16,384 tokens of KV cache: kept prefixes fill it within seconds, so that memory can be seen to be flat after that.
BOUNDED = {
    "PACELINE_MAX_RUNNING": str(MAX_RUNNING),
    "PACELINE_MAX_WAITING": str(MAX_WAITING),
    "PACELINE_CONTEXT_LENGTH": "2048",
}
LAYOUTS = (
    Layout(ONE, 1, PLAIN),
    Layout(TWO, 2, PLAIN),
    Layout(GUESSING, 2, BOUNDED),
)
DEMO_VOCAB_SIZE = 40000
FULL_DEMO, FULL_1B = LoadEffort(rounds=3), LoadEffort(rounds=2, is_brief=True)
QUICK_DEMO, QUICK_1B = (
    LoadEffort(rounds=1, num_tokens=64),
    LoadEffort(rounds=1, num_tokens=96, long_tokens=400, is_brief=True),
)
FULL_CROWD, QUICK_CROWD = CrowdEffort(60, 10, 700, QUEUE_SIZE), CrowdEffort(10, 4, 250, QUEUE_SIZE)
LOOP_TOKENS = 64
EXPLANATION = (
    "Clusters with one and with two stages side by side, each runner with one thread on a core of its own: stage 0 and the head of two "
    "stages on different ones, a single stage on the head's. They are asked in turn at their heads, over gRPC; ratios are taken within a "
    "round, and are medians over rounds. Who asks shares the cores with those who answer. Prompts of token ids have no meaning and are new "
    "every time, as what was computed is kept.",
    "Guessing ahead (PACELINE_SPECULATION) is off but where it is named, so that figures do not depend on what meaningless text happens to "
    "repeat. Clusters that decide no mark took part at most in the first round.",
)


def run_load(home: Path, *, is_quick: bool) -> Section:
    check_cores()
    return asyncio.run(_run(home, is_quick=is_quick))


async def _run(home: Path, *, is_quick: bool) -> Section:
    started = time.monotonic()
    demo = Model("SmolLM2-135M-Instruct", await asyncio.to_thread(demo_gguf), "smollm2-135m-instruct", DEMO_VOCAB_SIZE)
    small = Run(demo, QUICK_DEMO if is_quick else FULL_DEMO, home / "load-demo")
    await small.measure(list_editing, QUICK_CROWD if is_quick else FULL_CROWD)
    made = await asyncio.to_thread(make_1b)
    large = Run(
        Model(made.title, made.folder, "random-1b", VOCAB_SIZE), QUICK_1B if is_quick else FULL_1B, home / "load-1b"
    )
    await large.measure(partial(find_loops, num_tokens=LOOP_TOKENS), None)
    outcomes = [small.outcome, large.outcome]
    say(f"load: {time.monotonic() - started:.0f} s")
    parts = [describe_machine(), *EXPLANATION, *(part for one in outcomes for part in describe_outcome(one))]
    return Section("\n\n".join(parts), {one.title: one.to_json() for one in outcomes})


@dataclass(slots=True)
class Run:
    """Measures one model: opens its clusters, warms them up, and takes the cases round by round."""

    model: Model
    effort: LoadEffort
    home: Path
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.model.title, self.effort)

    async def measure(
        self, list_tasks: Callable[[PinnedCluster], Awaitable[list[Task]]], crowd: CrowdEffort | None
    ) -> None:
        async with AsyncExitStack() as stack:
            clusters = [await stack.enter_async_context(self._open(layout)) for layout in LAYOUTS]
            for cluster in clusters:
                await warm_up(cluster, self.effort)
            await self._measure_rounds(clusters)
            await self._measure_editing(clusters[1:], list_tasks)
            if crowd:
                await self._attempt("many streams", self._measure_crowd(clusters[-1], crowd))
            for cluster in clusters:
                await self._attempt("the same runners as before", asyncio.to_thread(cluster.check_alive))

    def _open(self, layout: Layout) -> AbstractAsyncContextManager[PinnedCluster]:
        return open_pinned(layout, self.model, self.home / layout.name.replace(" ", "-"))

    async def _measure_rounds(self, clusters: Sequence[PinnedCluster]) -> None:
        """The clusters that only inform, rather than decide a mark, take part at most in the first round."""
        one, two, _ = clusters
        figures, effort = self.outcome.figures, self.effort
        for number in range(effort.rounds):
            is_wide = number == 0 and not effort.is_brief
            rated, disturbed = (clusters, [one, two]) if is_wide else ([one, two], [two])
            await self._attempt("streams", measure_rates(rated, effort, number, figures))
            await self._attempt("a long prompt beside streams", measure_gaps(disturbed, effort, number, figures))
            await self._attempt("turns", measure_turns([one, two], effort, number, figures))
            say(f"{self.model.title}: round {number + 1} of {effort.rounds} done")

    async def _measure_editing(
        self, clusters: Sequence[PinnedCluster], list_tasks: Callable[[PinnedCluster], Awaitable[list[Task]]]
    ) -> None:
        self.outcome.tasks = await list_tasks(clusters[0])
        for number in range(self.effort.rounds if self.outcome.tasks else 0):
            editing = measure_editing(clusters, self.outcome.tasks, number, self.outcome.figures)
            await self._attempt("guessing", editing)

    async def _measure_crowd(self, cluster: PinnedCluster, effort: CrowdEffort) -> None:
        self.outcome.crowd = await measure_crowd(cluster, effort)

    async def _attempt(self, case: str, work: Awaitable[None]) -> None:
        """A case that fails is told in the section; the others go on."""
        try:
            started = time.monotonic()
            await work
            say(f"{self.model.title}: {case}: {time.monotonic() - started:.0f} s")
        except* (PacelineError, UnavailableError, httpx.HTTPError, psutil.Error) as group:
            failures = [f"{case}: {error!r}" for error in group.exceptions]
            self.outcome.failures += failures
            say(f"{self.model.title}: failed: {'; '.join(failures)}")
