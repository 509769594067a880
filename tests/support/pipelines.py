"""A whole pipeline in one process: real layers of a tiny random model, real head, loopback links."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerateRequest,
    GenerationCompleted,
    GenerationStarted,
)
from paceline_services.domain.runners import ShardAssignment
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, InstanceId, ModelId
from paceline_worker.engine.draft_model import DraftModel
from paceline_worker.engine.stage_engine import StageEngine
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.costs import StepCosts
from paceline_worker.pipeline.guessing import Guesser
from paceline_worker.pipeline.head import Head
from paceline_worker.pipeline.memory import KvMemory
from paceline_worker.pipeline.ranks import RankedEngine
from paceline_worker.pipeline.scheduler import Scheduler, SchedulerLimits
from paceline_worker.pipeline.stages import Ring, StageLoop
from paceline_worker.pipeline.vocabulary import Vocabulary
from paceline_worker.transport.link import FrameInbox, LinkBrokenError
from paceline_worker.transport.loopback import LoopbackLink

MODEL_ID = ModelId("tiny")


@dataclass
class Pipeline:
    """The head and its scheduler, and of the current epoch every stage's engine and the links."""

    folder: Path
    num_layers: int
    context_length: int
    compute: ComputeThread
    head: Head = field(init=False)
    scheduler: Scheduler = field(init=False)
    engines: list[StageEngine] = field(default_factory=list)
    links: list[LoopbackLink] = field(default_factory=list)
    ring: Ring = field(init=False)
    epoch: int = 5
    num_ranks: int = 1
    """Of each stage. Every one holds the whole stage: collectives need a process each."""
    followers: list[list[StageEngine]] = field(default_factory=list)
    """Of each stage, the engines of its ranks from 1 on."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def load(self, num_stages: int) -> None:
        """Stages with empty caches, and what connects them."""
        self.shards = [
            ShardAssignment(
                *(InstanceId("tiny-1"), Epoch(self.epoch), MODEL_ID, stage, num_stages, start, end),
                self.context_length,
                str(self.folder),
                num_ranks=self.num_ranks,
            )
            for stage, (start, end) in enumerate(split_layers(self.num_layers, num_stages))
        ]
        self.engines = [await self.compute.run(partial(make_engine, self.folder, shard)) for shard in self.shards]
        self.inboxes = [FrameInbox() for _ in self.shards]
        self.links = [LoopbackLink(self.inboxes[(stage + 1) % num_stages]) for stage in range(num_stages)]
        self.stages = [
            RankedEngine(shard, engine, self.compute) for shard, engine in zip(self.shards, self.engines, strict=True)
        ]
        self.followers = [
            [await self.compute.run(partial(make_engine, self.folder, shard)) for _ in range(1, self.num_ranks)]
            for shard in self.shards
        ]
        self.rank_inboxes = [[FrameInbox() for _ in engines] for engines in self.followers]
        for stage, inboxes in zip(self.stages, self.rank_inboxes, strict=True):
            stage.lead([LoopbackLink(inbox) for inbox in inboxes])
        self.ring = Ring(self.shards[-1], self.stages[-1])
        if num_stages > 1:
            self.ring.connect(self.inboxes[-1], self.links[-1])

    def start(self) -> None:
        """Every stage works from now on."""
        loops = [StageLoop(shard, stage) for shard, stage in zip(self.shards[:-1], self.stages[:-1], strict=True)]
        self.tasks = [
            asyncio.create_task(loop.run(inbox, link))
            for loop, inbox, link in zip(loops, self.inboxes, self.links, strict=False)
        ]
        self.tasks.append(asyncio.create_task(run_head(self.head)))
        for shard, engines, inboxes in zip(self.shards, self.followers, self.rank_inboxes, strict=True):
            for rank, (engine, inbox) in enumerate(zip(engines, inboxes, strict=True), start=1):
                own = replace(shard, rank=rank)
                loop = StageLoop(own, RankedEngine(own, engine, self.compute))
                self.tasks.append(asyncio.create_task(loop.follow(inbox)))

    async def move(self, num_stages: int) -> None:
        """The epoch ends, wherever its steps are; other stages take over at the next one."""
        await self.stop()
        self.head.pause(UnavailableError("the parts change", reason="INSTANCE_BROKEN"))
        self.epoch += 1
        await self.load(num_stages)
        memory = KvMemory(self.scheduler.memory.capacity_tokens, can_cut=self.engines[-1].can_cut)
        await self.head.begin_epoch(self.ring, memory, num_stages, self.context_length)
        self.start()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def split_layers(num_layers: int, num_stages: int) -> list[tuple[int, int]]:
    """Even ranges, the rest to the last: uneven on purpose where it does not divide."""
    size = num_layers // num_stages
    return [
        (stage * size, num_layers if stage == num_stages - 1 else (stage + 1) * size) for stage in range(num_stages)
    ]


class FlatCosts(StepCosts):
    """Every step takes a second, whatever was measured: guessing pays, and what a draft model costs is nothing beside it."""

    def predict(self, num_tokens: int) -> float:
        return 1.0


@asynccontextmanager
async def open_pipeline(
    folder: Path,
    vocabulary: Vocabulary,
    *,
    num_layers: int,
    num_stages: int,
    context_length: int = 256,
    limits: SchedulerLimits | None = None,
    capacity_tokens: int = 16384,
    stage_capacities: Sequence[int] = (),
    speculates: bool = False,
    draft_folder: Path | None = None,
    costs: StepCosts | None = None,
    num_ranks: int = 1,
) -> AsyncIterator[Pipeline]:
    """Stages of the model in folder, running until the block ends. costs: those that decide, instead of measured ones."""
    compute = ComputeThread()
    pipeline = Pipeline(folder, num_layers, context_length, compute, num_ranks=num_ranks)
    await pipeline.load(num_stages)
    for engine, capacity in zip(pipeline.engines, stage_capacities, strict=False):
        engine.capacity_tokens = capacity
    memory = KvMemory(capacity_tokens, can_cut=pipeline.engines[-1].can_cut)
    scheduler = pipeline.scheduler = Scheduler(limits or SchedulerLimits(), memory, num_stages, costs or StepCosts())
    draft_model = await compute.run(lambda: load_draft_model(draft_folder)) if draft_folder else None
    guesser = Guesser(scheduler.costs, compute, draft_model) if speculates else None
    pipeline.head = Head(pipeline.ring, vocabulary, scheduler, context_length, guesser)
    pipeline.start()
    try:
        yield pipeline
    finally:
        await pipeline.stop()
        compute.close()


def load_draft_model(folder: Path) -> DraftModel:
    num_layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    loaded = load_shard(folder, ShardRange(0, 1, 0, num_layers), lambda part: None)
    return DraftModel(loaded.model, capacity_tokens=4096)


def make_engine(folder: Path, shard: ShardAssignment) -> StageEngine:
    layers = ShardRange(shard.stage, shard.num_stages, shard.start_layer, shard.end_layer)
    loaded = load_shard(folder, layers, lambda part: None)
    return StageEngine(loaded.model, is_first=shard.is_first, is_last=shard.is_last)


async def run_head(head: Head) -> None:
    try:
        await head.run()
    except LinkBrokenError as error:
        head.pause(UnavailableError(error.message, reason="INSTANCE_BROKEN"))


@dataclass
class Answer:
    """Everything one request got."""

    started: GenerationStarted
    texts: dict[int, str]
    tokens: dict[int, list[int]]
    finished: dict[int, ChoiceFinished]
    deltas: list[ChoiceDelta]
    completed: GenerationCompleted


@dataclass
class Telling:
    """How much of an answer was told by now."""

    num_tokens: int = 0


async def ask(head: Head, request: GenerateRequest, telling: Telling | None = None) -> Answer:
    """The whole answer; asserts that events come in their documented order. telling: is kept up to date."""
    events = []
    async for event in head.generate(request):
        events.append(event)
        if telling and isinstance(event, ChoiceDelta):
            telling.num_tokens += len(event.token_ids)
    started, completed = events[0], events[-1]
    assert isinstance(started, GenerationStarted)
    assert isinstance(completed, GenerationCompleted)
    answer = Answer(started, {}, {}, {}, [], completed)
    for event in events[1:-1]:
        if isinstance(event, ChoiceDelta):
            tokens = answer.tokens.setdefault(event.choice_index, [])
            assert event.first_token_index == len(tokens)
            assert event.choice_index not in answer.finished
            tokens.extend(event.token_ids)
            answer.texts[event.choice_index] = answer.texts.get(event.choice_index, "") + event.text
            answer.deltas.append(event)
        else:
            assert isinstance(event, ChoiceFinished)
            answer.finished[event.choice_index] = event
    return answer
