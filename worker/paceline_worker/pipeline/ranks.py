"""A step on the ranks of one stage: each holds a part of every layer, and the collectives inside a forward bind them.

The first rank sends every frame to the others before its own forward begins; they take it from their inboxes and run the same
(StageLoop.follow). All that a forward depends on is in the frame, so every rank runs the same collectives in the same order: nothing else
touches an engine while an epoch runs. A stage that is one runner has nobody to send to, and that is the only difference.

What an engine refuses about a frame (PacelineError: plan and caches do not agree), every rank refuses before it computes: the step has
failed, as on a single runner. After any other fault the other ranks wait in a collective, some of them for ever: the epoch is over.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from paceline_services.domain.runners import ShardAssignment
from paceline_services.domain.steps import StepFailure, StepPlan, Tensor
from paceline_services.errors import InternalError, PacelineError, UnavailableError
from paceline_services.logs import get_logger
from paceline_worker.engine.stage_engine import StageEngine, StageOutput
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.transport.frame import Frame
from paceline_worker.transport.link import LinkBrokenError, StageLink

R = TypeVar("R")
COMPUTE_FAULTS = (RuntimeError, ValueError, MemoryError)
"""What MLX raises where it cannot compute, a lost member of the group included."""


class StepFailedError(PacelineError):
    """A stage could not compute a step; the instance goes on without its sequences."""

    default_reason = "STEP_FAILED"

    def __init__(self, failure: StepFailure) -> None:
        super().__init__(f"stage {failure.stage} failed: {failure.message}")
        self.failure = failure


class RankLostError(UnavailableError):
    """The ranks of a stage cannot go on together: the epoch is over. rank: the one that is gone; None where that is not known."""

    default_reason = "RANK_LOST"

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RankedEngine:
    """The engine of one rank, and on the first one the ways to the others."""

    def __init__(self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread) -> None:
        self.engine = engine
        self._shard = shard
        self._compute = compute
        self._links: tuple[StageLink, ...] = ()

    def lead(self, links: Sequence[StageLink]) -> None:
        """Send every frame over these links from now on: to the stage's other ranks, from rank 1 on."""
        self._links = tuple(links)

    async def wait_lost(self) -> RankLostError:
        """Return when the link to one of the other ranks broke."""
        waits = [asyncio.create_task(link.wait_broken()) for link in self._links]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            rank = next(rank for rank, wait in enumerate(waits, start=1) if wait in done)
            return _name_rank(rank, waits[rank - 1].result())
        finally:
            for wait in waits:
                wait.cancel()

    async def run_step(self, frame: Frame, read: Callable[[StageOutput], R]) -> R:
        """Run a frame's step on every rank, and read what it made here on the compute thread.

        Raises StepFailedError where the instance goes on without the step, RankLostError.
        """
        await self._pass_on(frame)
        plan = frame.header.plan
        try:
            return await self._compute.run(lambda: read(self._compute_step(frame)), num_tokens=count_tokens(plan))
        except RankLostError:
            raise
        except (PacelineError, *COMPUTE_FAULTS) as error:
            get_logger().error("step_failed", step=plan.step, stage=self._shard.stage, exc_info=error)
            raise StepFailedError(StepFailure(self._shard.stage, str(error))) from error

    async def update_sequences(self, frame: Frame) -> None:
        """Bring the caches of every rank up to a step that an earlier stage failed in. Raises RankLostError."""
        await self._pass_on(frame)
        await self._compute.run(lambda: self.engine.update_sequences(frame.header.plan))

    async def _pass_on(self, frame: Frame) -> None:
        for rank, link in enumerate(self._links, start=1):
            try:
                await link.send(frame)
            except LinkBrokenError as error:
                raise _name_rank(rank, error) from error

    def _compute_step(self, frame: Frame) -> StageOutput:
        """On the compute thread."""
        try:
            return self.engine.run_step(frame.header.plan, take_activation(frame))
        except COMPUTE_FAULTS as error:
            if self._shard.num_ranks > 1:
                raise RankLostError(f"rank {self._shard.rank} could not compute with the others: {error}") from error
            raise


def count_tokens(plan: StepPlan) -> int:
    """Tokens whose forward a step runs."""
    return sum(len(part.token_ids) for part in plan.sequences)


def take_activation(frame: Frame) -> Tensor | None:
    """The activation that came with a frame; none from the head to stage 0."""
    if len(frame.tensors) > 1:
        raise InternalError(f"a frame came with {len(frame.tensors)} tensors where one was expected")
    return frame.tensors[0] if frame.tensors else None


def _name_rank(rank: int, error: LinkBrokenError) -> RankLostError:
    return RankLostError(f"rank {rank} is gone: {error.message}", rank)
