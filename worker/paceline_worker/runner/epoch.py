"""One epoch of a runner at work: its edges, to other stages and to the other ranks of its own, and the steps that come and go over them
until one breaks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from paceline_services.domain.runners import ShardAssignment
from paceline_services.errors import InvalidRequestError
from paceline_worker.pipeline.head import Head
from paceline_worker.pipeline.memory import fewest_tokens
from paceline_worker.pipeline.ranks import RankedEngine, RankLostError
from paceline_worker.pipeline.stages import Ring, StageLoop
from paceline_worker.transport.group_link import HandOff, HandOffInbox, HandOffLink
from paceline_worker.transport.grpc_link import GrpcLink, Reception
from paceline_worker.transport.link import FrameInbox, LinkBrokenError, Neighbour, StageLink

LOSS_DELAY_S = 0.5
"""A collective may fail before the link says which rank was lost: so long that is waited for."""
Edge = Coroutine[Any, Any, LinkBrokenError | RankLostError]


def _make_future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class Peers:
    """The other runners of an epoch, as far as the agent has told by now."""

    group_addresses: "asyncio.Future[tuple[str, ...]]" = field(default_factory=_make_future)
    next_address: "asyncio.Future[str]" = field(default_factory=_make_future)
    rank_addresses: "asyncio.Future[tuple[str, ...]]" = field(default_factory=_make_future)

    def learn_group(self, addresses: tuple[str, ...]) -> None:
        """The members' addresses, by rank. Raises InvalidRequestError when they were told before."""
        if self.group_addresses.done():
            raise InvalidRequestError("a runner was told to join its group a second time")
        self.group_addresses.set_result(addresses)

    def learn_links(self, next_address: str, rank_addresses: tuple[str, ...]) -> None:
        """Whom to connect to. Raises InvalidRequestError when that was told before."""
        if self.next_address.done():
            raise InvalidRequestError("a runner was told to connect a second time")
        self.next_address.set_result(next_address)
        self.rank_addresses.set_result(rank_addresses)


@dataclass(slots=True)
class _Links:
    """Out of this runner, as far as they are open. following: to the next stage."""

    ranks: list[GrpcLink] = field(default_factory=list)
    following: StageLink | None = None

    @property
    def all(self) -> list[StageLink]:
        return [*self.ranks, *([self.following] if self.following else [])]


class EpochWork:
    """Made once the layers are loaded. What comes in from then on is taken."""

    def __init__(self, shard: ShardAssignment, stage: RankedEngine, hand_off: HandOff | None = None) -> None:
        """hand_off: through which activations go from stage to stage; None where they go in frames."""
        self._shard = shard
        self._stage = stage
        self._hand_off = hand_off
        self._inbox = HandOffInbox(hand_off) if hand_off and not shard.is_first else FrameInbox()
        self._capacity_tokens = stage.engine.capacity_tokens
        self.ring = Ring(shard, stage)

    @property
    def reception(self) -> Reception:
        """What the data plane accepts for this epoch."""
        return Reception(self._shard.instance_id, self._shard.epoch, self._inbox, self._capacity_tokens)

    async def run(self, loop: Head | StageLoop, peers: Peers, timeout_s: float, on_ready: Callable[[], None]) -> None:
        """Connect, within timeout_s once the others' addresses are there, and run steps until an edge breaks.

        Raises LinkBrokenError for an edge to another stage, RankLostError for one within the stage.
        """
        try:
            async with self._open_links(peers, timeout_s) as links:
                on_ready()
                await _run_until_broken(self._work(loop, links), self._edges(links))
        except LinkBrokenError as error:
            if self._shard.rank:
                raise RankLostError("rank 0 is gone", 0) from error
            raise
        finally:
            if self._shard.rank:
                self._inbox.close()

    @asynccontextmanager
    async def _open_links(self, peers: Peers, timeout_s: float) -> AsyncIterator[_Links]:
        """Those of a stage's first rank: to its other ranks, and to the next stage, where there are some. Other ranks have none."""
        links = _Links()
        try:
            if self._shard.rank == 0 and self._shard.num_ranks > 1:
                for rank, address in enumerate(await peers.rank_addresses, start=1):
                    links.ranks.append(await self._connect_rank(rank, address, timeout_s))
                self._lead(links.ranks)
            if self._shard.rank == 0 and self._shard.num_stages > 1:
                link = await self._connect(await peers.next_address, timeout_s, "the next stage")
                links.following = HandOffLink(link, self._hand_off) if self._hand_off else link
                self.ring.connect(self._inbox, links.following)
            yield links
        finally:
            await asyncio.gather(*(link.close() for link in links.all))

    def _lead(self, ranks: Sequence[GrpcLink]) -> None:
        """Steps are planned for the room of the rank that has the least."""
        self._stage.lead(ranks)
        engine = self._stage.engine
        engine.capacity_tokens = fewest_tokens(engine.capacity_tokens, *(link.kv_capacity_tokens for link in ranks))

    async def _connect_rank(self, rank: int, address: str, timeout_s: float) -> GrpcLink:
        try:
            return await self._connect(address, timeout_s, f"rank {rank}")
        except LinkBrokenError as error:
            raise RankLostError(error.message, rank) from error

    async def _connect(self, address: str, timeout_s: float, receiver: str) -> GrpcLink:
        return await GrpcLink.connect(address, self._shard.instance_id, self._shard.epoch, timeout_s, receiver)

    def _work(self, loop: Head | StageLoop, links: _Links) -> Coroutine[Any, Any, None]:
        if isinstance(loop, Head):
            return loop.run()
        return loop.run(self._inbox, links.following) if links.following else loop.follow(self._inbox)

    def _edges(self, links: _Links) -> list[Edge]:
        """What ends the epoch when it returns."""
        edges: list[Edge] = []
        if links.following or self._shard.rank:
            edges.append(self._inbox.wait_broken())
        if links.following:
            edges.append(links.following.wait_broken())
        if links.ranks:
            edges.append(self._stage.wait_lost())
        return edges


def name_loss(shard: ShardAssignment, error: LinkBrokenError | RankLostError) -> dict[str, int | None]:
    """The fields of a report that say who is at the other end of the edge that broke."""
    if isinstance(error, RankLostError):
        return {"lost_rank": error.rank}
    return {"lost_stage": (shard.stage + (1 if error.neighbour is Neighbour.NEXT else -1)) % shard.num_stages}


async def _run_until_broken(work: Coroutine[Any, Any, None], waits: Sequence[Edge]) -> None:
    """Run the stage's work until one of its edges breaks; raises LinkBrokenError, RankLostError."""
    edges = [asyncio.create_task(wait) for wait in waits]
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, *edges}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and isinstance(loss := task.exception(), RankLostError) and loss.rank is None:
            await asyncio.wait(edges, timeout=LOSS_DELAY_S, return_when=asyncio.FIRST_COMPLETED)
        elif task.done():
            task.result()
        broken = [edge.result() for edge in edges if edge.done()]
        if broken:
            raise broken[0]
        task.result()
    finally:
        for pending in (task, *edges):
            pending.cancel()
        await asyncio.gather(task, *edges, return_exceptions=True)
