"""The way of a step through the stages: out from the head to stage 0, stage to stage, and back to the head.

Stages before the head run StageLoop. The head runs its steps through a Ring; with one stage the ring has no link, and that is the
only difference. Failures travel forward as frames, so the head hears of them in order.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from paceline_services.domain.runners import ShardAssignment
from paceline_services.domain.steps import StepFailure, StepPlan
from paceline_services.errors import PacelineError
from paceline_services.ids import SequenceId
from paceline_services.logs import get_logger
from paceline_worker.engine.stage_engine import StageEngine, StageOutput
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.transport.frame import Frame, FrameHeader
from paceline_worker.transport.link import FrameInbox, StageLink


class StepFailedError(PacelineError):
    """A stage could not compute a step."""

    default_reason = "STEP_FAILED"


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step: what the head's engine made, and the times of the whole way in seconds."""

    output: StageOutput
    total_duration_s: float
    compute_duration_s: float


class StageLoop:
    """A stage that is not the head: takes frames, computes, passes on."""

    def __init__(self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread) -> None:
        self._shard = shard
        self._engine = engine
        self._compute = compute

    async def run(self, inbox: FrameInbox, link: StageLink) -> None:
        """Work until the incoming or outgoing edge breaks; raises LinkBrokenError."""
        while True:
            await link.send(await self._process(await inbox.get()))

    async def _process(self, frame: Frame) -> Frame:
        plan = frame.header.plan
        if frame.header.failure is not None:
            await self._compute.run(lambda: self._engine.update_sequences(plan))
            return frame
        try:
            output = await self._compute.run(lambda: self._engine.run_step(plan, frame.tensors))
        except (PacelineError, RuntimeError, ValueError, MemoryError) as error:
            get_logger().error("step_failed", step=plan.step, stage=self._shard.stage, exc_info=error)
            failure = StepFailure(self._shard.stage, str(error))
            return Frame(replace(frame.header, tensors=(), failure=failure))
        header = replace(
            frame.header,
            tensors=tuple(tensor.header for tensor in output.tensors),
            compute_duration_us=frame.header.compute_duration_us + output.compute_duration_us,
        )
        return Frame(header, output.tensors)


class Ring:
    """The head's way through all stages. Steps are run one at a time, in the order of the calls."""

    def __init__(self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread) -> None:
        self._shard = shard
        self._engine = engine
        self._compute = compute
        self._inbox: FrameInbox | None = None
        self._link: StageLink | None = None

    def connect(self, inbox: FrameInbox, link: StageLink) -> None:
        """Put the other stages in: frames go out over link and come back through inbox."""
        self._inbox, self._link = inbox, link

    async def run_step(self, plan: StepPlan, wanted: Collection[SequenceId]) -> StepResult:
        """Run a step through every stage. Raises StepFailedError when one could not compute it, LinkBrokenError if one is lost."""
        started = time.perf_counter()
        frame = await self._pass_stages(plan)
        if frame.header.failure is not None:
            await self._compute.run(lambda: self._engine.update_sequences(plan))
            raise StepFailedError(f"stage {frame.header.failure.stage} failed: {frame.header.failure.message}")
        try:
            output = await self._compute.run(lambda: self._engine.run_step(plan, frame.tensors, wanted))
        except (PacelineError, RuntimeError, ValueError, MemoryError) as error:
            get_logger().error("step_failed", step=plan.step, stage=self._shard.stage, exc_info=error)
            raise StepFailedError(f"stage {self._shard.stage} failed: {error}") from error
        compute_us = frame.header.compute_duration_us + output.compute_duration_us
        return StepResult(output, time.perf_counter() - started, compute_us / 1e6)

    async def _pass_stages(self, plan: StepPlan) -> Frame:
        frame = Frame(FrameHeader(self._shard.instance_id, self._shard.epoch, plan))
        if self._link is None or self._inbox is None:
            return frame
        await self._link.send(frame)
        returned = await self._inbox.get()
        if returned.header.plan.step != plan.step:
            raise StepFailedError(f"step {returned.header.plan.step} came back where step {plan.step} was sent")
        return returned
