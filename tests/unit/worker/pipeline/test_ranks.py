"""What the ranks of one stage promise: all run the same steps over the same caches, and a fault that is not everyone's ends the epoch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.domain.generation import GenerateRequest, Limits, Sampling, TokenIds
from paceline_services.domain.runners import ShardAssignment
from paceline_services.domain.steps import DType, SequenceStep, StepFailure, StepPlan, Tensor, TensorHeader
from paceline_services.ids import Epoch, InstanceId, SequenceId
from paceline_worker.engine.stage_engine import StageEngine
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.ranks import RankedEngine, RankLostError, StepFailedError
from paceline_worker.pipeline.scheduler import SchedulerLimits
from paceline_worker.pipeline.vocabulary import Vocabulary
from paceline_worker.transport.frame import Frame, FrameHeader
from paceline_worker.transport.link import FrameInbox
from paceline_worker.transport.loopback import LoopbackLink
from support.models import VOCAB_SIZE, make_tiny_model
from support.pipelines import MODEL_ID, FlatCosts, Pipeline, ask, make_engine, open_pipeline

NUM_LAYERS = 4
PROMPT = TokenIds(tuple(range(3, 33)))
GREEDY = GenerateRequest(MODEL_ID, token_ids=PROMPT, limits=Limits(max_tokens=24, ignore_eos=True))
DRAWN = replace(GREEDY, sampling=Sampling(temperature=1.0, seed=11), num_choices=3)
ONE = SequenceId(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path, seed=3)
    return path


def shard_of(folder: Path, *, stage: int = 0, num_stages: int = 1, num_ranks: int = 2) -> ShardAssignment:
    layers = (stage * 2, 2 + stage * 2) if num_stages == 2 else (0, NUM_LAYERS)
    return ShardAssignment(
        *(InstanceId("tiny-1"), Epoch(5), MODEL_ID, stage, num_stages, *layers), 256, str(folder), num_ranks=num_ranks
    )


@asynccontextmanager
async def open_stage(shard: ShardAssignment) -> AsyncIterator[tuple[RankedEngine, StageEngine]]:
    compute = ComputeThread()
    engine = await compute.run(lambda: make_engine(Path(shard.model_path), shard))
    yield RankedEngine(shard, engine, compute), engine
    compute.close()


def make_frame(plan: StepPlan, *tensors: Tensor, failure: StepFailure | None = None) -> Frame:
    headers = tuple(tensor.header for tensor in tensors)
    return Frame(FrameHeader(InstanceId("tiny-1"), Epoch(5), plan, headers, failure), tensors)


def step_of(*token_ids: int, position: int = 0, is_new: bool = True) -> StepPlan:
    return StepPlan(1, opened=(ONE,) if is_new else (), sequences=(SequenceStep(ONE, token_ids, position, 1),))


async def let_followers_finish(pipeline: Pipeline) -> None:
    """Every step reached a stage's other ranks before it ran; what they run is done when nothing is held differently."""
    async with asyncio.timeout(60):
        while any(  # noqa: ASYNC110 (what engines hold has no event)
            (follower.num_sequences, follower.cache_bytes) != (engine.num_sequences, engine.cache_bytes)
            for engine, followers in zip(pipeline.engines, pipeline.followers, strict=True)
            for follower in followers
        ):
            await asyncio.sleep(0)


@pytest.mark.parametrize("num_stages", [1, 2])
async def test_other_ranks_hold_what_the_first_one_holds_whatever_is_asked(folder: Path, num_stages: int) -> None:
    vocabulary = Vocabulary(load_tokenizer(folder), VOCAB_SIZE)
    async with open_pipeline(
        folder,
        vocabulary,
        num_layers=NUM_LAYERS,
        num_stages=num_stages,
        limits=SchedulerLimits(max_running=4, chunk_tokens=7),
        capacity_tokens=1024,
        speculates=True,
        costs=FlatCosts(),
        num_ranks=3,
    ) as pipeline:
        repeating = replace(GREEDY, token_ids=TokenIds(PROMPT.ids[:8] * 4))
        alone = [(await ask(pipeline.head, request)).tokens for request in (GREEDY, DRAWN, repeating)]
        together = await asyncio.gather(*(ask(pipeline.head, request) for request in (GREEDY, DRAWN, repeating)))
        assert [answer.tokens for answer in together] == alone
        assert sum(answer.completed.num_drafted_tokens for answer in together) > 0
        assert sum(answer.completed.num_cached_tokens for answer in together) > 0
        leaving = asyncio.create_task(ask(pipeline.head, DRAWN))
        await asyncio.sleep(0)
        leaving.cancel()
        await ask(pipeline.head, GREEDY)
        await let_followers_finish(pipeline)
        assert pipeline.engines[0].num_sequences > 0


async def test_frame_is_on_its_way_to_every_rank_before_the_first_one_computes(folder: Path) -> None:
    async with open_stage(shard_of(folder, num_ranks=3)) as (stage, engine):
        held: list[int] = []

        class NotingLink(LoopbackLink):
            async def send(self, frame: Frame) -> None:
                held.append(engine.num_sequences)
                await super().send(frame)

        inboxes = [FrameInbox(), FrameInbox()]
        stage.lead([NotingLink(inbox) for inbox in inboxes])
        plan = step_of(5, 6, 7)
        output = await stage.run_step(make_frame(plan), lambda output: output)
        assert output.logits[ONE].shape == (1, VOCAB_SIZE)
        assert held == [0, 0]
        assert [(await inbox.get()).header.plan for inbox in inboxes] == [plan, plan]


async def test_step_that_an_earlier_stage_failed_in_changes_caches_on_every_rank_and_computes_nothing(
    folder: Path,
) -> None:
    async with open_stage(shard_of(folder)) as (stage, engine):
        inbox = FrameInbox()
        stage.lead([LoopbackLink(inbox)])
        failed = make_frame(step_of(5), failure=StepFailure(0, "no"))
        await stage.update_sequences(failed)
        assert (engine.num_sequences, engine.cache_bytes) == (1, 0)
        assert await inbox.get() == failed


async def test_step_that_no_rank_can_begin_fails_alone(folder: Path) -> None:
    async with open_stage(shard_of(folder)) as (stage, _):
        with pytest.raises(StepFailedError, match="sequence 1 was never opened"):
            await stage.run_step(make_frame(step_of(5, is_new=False)), lambda output: output)
        await stage.run_step(make_frame(step_of(5)), lambda output: output)


@pytest.mark.parametrize(("num_ranks", "error"), [(1, StepFailedError), (2, RankLostError)])
async def test_fault_of_the_forward_ends_the_epoch_where_others_wait_in_it(
    folder: Path, num_ranks: int, error: type[Exception]
) -> None:
    header = TensorHeader(DType.FLOAT32, (1, 8))
    narrow = Tensor(header, bytes(header.size_bytes))  # the model's activations are 64 wide
    async with open_stage(shard_of(folder, stage=1, num_stages=2, num_ranks=num_ranks)) as (stage, _):
        with pytest.raises(error):
            await stage.run_step(make_frame(step_of(5), narrow), lambda output: output)


async def test_lost_rank_is_named(folder: Path) -> None:
    async with open_stage(shard_of(folder, num_ranks=3)) as (stage, _):
        links = [LoopbackLink(FrameInbox()) for _ in range(2)]
        stage.lead(links)
        waiting = asyncio.create_task(stage.wait_lost())
        links[1].cut()
        assert (await waiting).rank == 2
        with pytest.raises(RankLostError) as lost:
            await stage.run_step(make_frame(step_of(5)), lambda output: output)
        assert lost.value.rank == 2
