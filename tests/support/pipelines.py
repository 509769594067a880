"""A whole pipeline in one process: real layers of a tiny random model, real head, loopback links."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import ShardRange
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.guessing import Guesser
from paceline_worker.pipeline.head import Head
from paceline_worker.pipeline.memory import KvMemory
from paceline_worker.pipeline.scheduler import Scheduler, SchedulerLimits
from paceline_worker.pipeline.stages import Ring, StageLoop
from paceline_worker.pipeline.vocabulary import Vocabulary
from paceline_worker.transport.link import FrameInbox, LinkBrokenError
from paceline_worker.transport.loopback import LoopbackLink

MODEL_ID = ModelId("tiny")


@dataclass
class Pipeline:
    """The head and its scheduler, every stage's engine, and the links."""

    head: Head
    scheduler: Scheduler
    engines: list[StageEngine]
    links: list[LoopbackLink]


def split_layers(num_layers: int, num_stages: int) -> list[tuple[int, int]]:
    """Even ranges, the rest to the last: uneven on purpose where it does not divide."""
    size = num_layers // num_stages
    return [
        (stage * size, num_layers if stage == num_stages - 1 else (stage + 1) * size) for stage in range(num_stages)
    ]


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
) -> AsyncIterator[Pipeline]:
    """Stages of the model in folder, running until the block ends."""
    compute = ComputeThread()
    shards = [
        ShardAssignment(
            InstanceId("tiny-1"), Epoch(5), MODEL_ID, stage, num_stages, start, end, context_length, str(folder)
        )
        for stage, (start, end) in enumerate(split_layers(num_layers, num_stages))
    ]
    engines = [await compute.run(lambda shard=shard: make_engine(folder, shard)) for shard in shards]  # type: ignore[misc]
    for engine, capacity in zip(engines, stage_capacities, strict=False):
        engine.capacity_tokens = capacity
    inboxes = [FrameInbox() for _ in shards]
    links = [LoopbackLink(inboxes[(stage + 1) % num_stages]) for stage in range(num_stages)]
    ring = Ring(shards[-1], engines[-1], compute)
    if num_stages > 1:
        ring.connect(inboxes[-1], links[-1])
    memory = KvMemory(capacity_tokens, can_cut=engines[-1].can_cut)
    scheduler = Scheduler(limits or SchedulerLimits(), memory, num_stages)
    draft_model = await compute.run(lambda: load_draft_model(draft_folder)) if draft_folder else None
    guesser = Guesser(scheduler.costs, compute, draft_model) if speculates else None
    head = Head(ring, vocabulary, scheduler, context_length, guesser)
    loops = [StageLoop(shard, engine, compute) for shard, engine in zip(shards[:-1], engines[:-1], strict=True)]
    tasks = [
        asyncio.create_task(loop.run(inbox, link)) for loop, inbox, link in zip(loops, inboxes, links, strict=False)
    ]
    tasks.append(asyncio.create_task(run_head(head)))
    try:
        yield Pipeline(head, scheduler, engines, links)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        compute.close()


def load_draft_model(folder: Path) -> DraftModel:
    num_layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    loaded = load_shard(folder, ShardRange(0, 1, 0, num_layers), lambda part: None)
    return DraftModel(loaded.model, capacity_tokens=4096)


def make_engine(folder: Path, shard: ShardAssignment) -> StageEngine:
    layers = ShardRange(shard.stage, shard.num_stages, shard.start_layer, shard.end_layer)
    loaded = load_shard(folder, layers, lambda part: None)
    return StageEngine(loaded.model, is_first=shard.is_first, is_head=shard.is_head)


async def run_head(head: Head) -> None:
    try:
        await head.run()
    except LinkBrokenError as error:
        head.fail_all(UnavailableError(error.message, reason="INSTANCE_BROKEN"))


@dataclass
class Answer:
    """Everything one request got."""

    started: GenerationStarted
    texts: dict[int, str]
    tokens: dict[int, list[int]]
    finished: dict[int, ChoiceFinished]
    deltas: list[ChoiceDelta]
    completed: GenerationCompleted


async def ask(head: Head, request: GenerateRequest) -> Answer:
    """The whole answer; asserts that events come in their documented order."""
    events = [event async for event in head.generate(request)]
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
