"""One epoch of a runner at work: its two edges, and the steps that come and go over them until one breaks."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from paceline_services.domain.runners import ShardAssignment
from paceline_worker.engine.stage_engine import StageEngine
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.head import Head
from paceline_worker.pipeline.stages import Ring, StageLoop
from paceline_worker.transport.grpc_link import GrpcLink, Reception
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour


class EpochWork:
    """Made once the layers are loaded. inbox takes what comes in from then on."""

    def __init__(self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread) -> None:
        self._shard = shard
        self._inbox = FrameInbox()
        self.ring = Ring(shard, engine, compute)

    @property
    def reception(self) -> Reception:
        """What the data plane accepts for this epoch."""
        return Reception(self._shard.instance_id, self._shard.epoch, self._inbox)

    async def run(
        self,
        loop: Head | StageLoop,
        next_address: Awaitable[str],
        timeout_s: float,
        on_ready: Callable[[], None],
    ) -> None:
        """Connect within timeout_s once the next stage's address is there, and run steps until an edge breaks: raises LinkBrokenError."""
        if isinstance(loop, Head) and self._shard.num_stages == 1:
            on_ready()
            await loop.run()
        link = await GrpcLink.connect(await next_address, self._shard.instance_id, self._shard.epoch, timeout_s)
        try:
            self.ring.connect(self._inbox, link)
            on_ready()
            work = loop.run() if isinstance(loop, Head) else loop.run(self._inbox, link)
            await _run_until_broken(work, self._inbox, link)
        finally:
            await link.close()


def find_lost_stage(shard: ShardAssignment, error: LinkBrokenError) -> int:
    """The stage at the other end of the edge that broke."""
    return (shard.stage + (1 if error.neighbour is Neighbour.NEXT else -1)) % shard.num_stages


async def _run_until_broken(work: Coroutine[Any, Any, None], inbox: FrameInbox, link: GrpcLink) -> None:
    """Run the stage's work until one of its edges breaks; raises LinkBrokenError."""
    edges = [asyncio.create_task(inbox.wait_broken()), asyncio.create_task(link.wait_broken())]
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, *edges}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        raise next(edge.result() for edge in edges if edge.done())
    finally:
        for pending in (task, *edges):
            pending.cancel()
        await asyncio.gather(task, *edges, return_exceptions=True)
