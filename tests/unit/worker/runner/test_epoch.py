"""One epoch of a stage's ranks: whom each connects to, what room they agree on, and who they say was lost. Real links, a tiny model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from paceline_services.domain.runners import ShardAssignment
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Epoch, InstanceId, ModelId
from paceline_services.rpc import serve_rpc
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.ranks import RankedEngine, RankLostError
from paceline_worker.pipeline.stages import StageLoop
from paceline_worker.runner.epoch import EpochWork, Peers, name_loss
from paceline_worker.transport.grpc_link import StageServicer
from paceline_worker.transport.link import LinkBrokenError, Neighbour
from support.models import make_tiny_model
from support.pipelines import make_engine


@dataclass
class Part:
    """One runner's epoch at work. address: its data plane; capacity: what it has room for, once it is ready."""

    shard: ShardAssignment
    stage: RankedEngine
    address: str
    work: EpochWork
    servicer: StageServicer
    peers: Peers
    ready: asyncio.Event

    async def run(self) -> None:
        await self.work.run(StageLoop(self.shard, self.stage), self.peers, 5.0, self.ready.set)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


@asynccontextmanager
async def open_part(folder: Path, stage: int, rank: int, capacity: int) -> AsyncIterator[Part]:
    """A rank of the first of two stages, each of two ranks, or of the second one."""
    shard = ShardAssignment(
        *(InstanceId("tiny-1"), Epoch(3), ModelId("tiny"), stage, 2, 2 * stage, 2 * stage + 2, 256, str(folder)),
        rank=rank,
        num_ranks=2,
    )
    compute = ComputeThread()
    engine = await compute.run(lambda: make_engine(folder, shard))
    engine.capacity_tokens = capacity
    ranked = RankedEngine(shard, engine, compute)
    work = EpochWork(shard, ranked)
    servicer = StageServicer(work.reception)
    async with serve_rpc("127.0.0.1:0", servicer.add_to, grace_s=0) as server:
        yield Part(shard, ranked, f"127.0.0.1:{server.port}", work, servicer, Peers(), asyncio.Event())
    compute.close()


@asynccontextmanager
async def open_stage(
    folder: Path,
) -> AsyncIterator[tuple[Part, Part, Part, "asyncio.Task[None]", "asyncio.Task[None]"]]:
    """The two ranks of the first stage, connected, and the first one of the next; and the work of the former."""
    async with (
        open_part(folder, 0, 0, 1024) as first,
        open_part(folder, 0, 1, 512) as other,
        open_part(folder, 1, 0, 2048) as following,
    ):
        first.peers.learn_links(following.address, (other.address,))
        tasks = [asyncio.create_task(part.run()) for part in (first, other)]
        await asyncio.gather(first.ready.wait(), other.ready.wait())
        yield first, other, following, tasks[0], tasks[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_first_rank_plans_for_the_room_of_the_rank_that_has_the_least(folder: Path) -> None:
    async with open_stage(folder) as (first, other, *_):
        assert (first.stage.engine.capacity_tokens, other.stage.engine.capacity_tokens) == (512, 512)


async def test_first_rank_names_the_rank_that_gave_up(folder: Path) -> None:
    async with open_stage(folder) as (first, _, _, leading, following):
        following.cancel()
        with pytest.raises(RankLostError) as lost:
            await leading
        assert name_loss(first.shard, lost.value) == {"lost_rank": 1}


async def test_other_ranks_name_the_first_one(folder: Path) -> None:
    async with open_stage(folder) as (_, other, _, leading, following):
        leading.cancel()
        with pytest.raises(RankLostError) as lost:
            await following
        assert name_loss(other.shard, lost.value) == {"lost_rank": 0}


async def test_lost_stage_is_told_from_a_lost_rank(folder: Path) -> None:
    async with open_stage(folder) as (first, _, third, leading, following):
        third.work.reception.inbox.close()
        with pytest.raises(LinkBrokenError) as lost:
            await leading
        assert name_loss(first.shard, lost.value) == {"lost_stage": 1}
        assert lost.value.neighbour is Neighbour.NEXT
        with pytest.raises(RankLostError):
            await following


async def test_peers_are_told_once() -> None:
    peers = Peers()
    peers.learn_group(("127.0.0.1:7000", "127.0.0.1:7001"))
    peers.learn_links("", ("127.0.0.1:9001",))
    with pytest.raises(InvalidRequestError, match="a second time"):
        peers.learn_group(())
    with pytest.raises(InvalidRequestError, match="a second time"):
        peers.learn_links("", ())
