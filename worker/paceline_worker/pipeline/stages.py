"""The way of a step through the stages: out from the head to stage 0, stage to stage, and back to the head.

Stages before the head run StageLoop. The head sends its steps into a Ring and receives them in the order in which it sent them; with one
stage the ring has no link, and that is the only difference. Several steps may be on their way at once. Failures travel forward as frames,
so the head hears of them in order.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from paceline_services.domain.runners import RunnerLoad, ShardAssignment
from paceline_services.domain.steps import StepFailure, StepPlan, Tensor
from paceline_services.errors import InternalError, PacelineError
from paceline_services.logs import get_logger
from paceline_worker.engine.stage_engine import StageEngine, StageOutput
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.transport.frame import Frame, FrameHeader
from paceline_worker.transport.link import FrameInbox, StageLink

R = TypeVar("R")
STEP_FAULTS = (PacelineError, RuntimeError, ValueError, MemoryError)
"""What a step may end with; the instance goes on without its sequences."""


class StepFailedError(PacelineError):
    """A stage could not compute a step."""

    default_reason = "STEP_FAILED"


@dataclass(slots=True)
class WorkMeter:
    """How a stage spends its time while the instance has work."""

    num_steps: int = 0
    num_tokens: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0

    def count(self, plan: StepPlan, waited_s: float, worked_s: float) -> None:
        """A step was computed, after the stage had waited for it."""
        self.num_steps += 1
        self.num_tokens += count_tokens(plan)
        self.busy_s += worked_s
        self.idle_s += 0.0 if plan.is_resumed else waited_s

    def take_idle_ratio(self) -> float:
        """Part of the time since the last call that was idle, 0 to 1."""
        total = self.busy_s + self.idle_s
        ratio = self.idle_s / total if total else 0.0
        self.busy_s = self.idle_s = 0.0
        return ratio


class StageLoop:
    """A stage that is not the head: takes frames, computes, passes on."""

    def __init__(
        self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread, meter: WorkMeter | None = None
    ) -> None:
        self._shard = shard
        self._engine = engine
        self._compute = compute
        self._meter = meter or WorkMeter()

    async def run(self, inbox: FrameInbox, link: StageLink) -> None:
        """Work until the incoming or outgoing edge breaks; raises LinkBrokenError."""
        while True:
            waiting = time.perf_counter()
            frame = await inbox.get()
            started = time.perf_counter()
            computed = await self._process(frame)
            self._meter.count(frame.header.plan, started - waiting, time.perf_counter() - started)
            await link.send(computed)

    def read_load(self) -> RunnerLoad:
        """How busy the stage is; the idle ratio is that since the last call."""
        return RunnerLoad(
            idle_ratio=self._meter.take_idle_ratio(),
            num_steps=self._meter.num_steps,
            num_tokens=self._meter.num_tokens,
            kv_cache_bytes=self._engine.cache_bytes,
        )

    async def _process(self, frame: Frame) -> Frame:
        plan = frame.header.plan
        if frame.header.failure is not None:
            await self._compute.run(lambda: self._engine.update_sequences(plan))
            return frame
        try:
            output = await self._compute.run(
                lambda: self._engine.run_step(plan, take_activation(frame)), num_tokens=count_tokens(plan)
            )
        except STEP_FAULTS as error:
            get_logger().error("step_failed", step=plan.step, stage=self._shard.stage, exc_info=error)
            failure = StepFailure(self._shard.stage, str(error))
            return Frame(replace(frame.header, tensors=(), failure=failure))
        return self._make_frame(frame.header, output)

    def _make_frame(self, header: FrameHeader, output: StageOutput) -> Frame:
        tensors = (output.activation,) if output.activation else ()
        capacities = {self._engine.capacity_tokens, header.kv_capacity_tokens} - {0}
        passed_on = replace(
            header,
            tensors=tuple(tensor.header for tensor in tensors),
            compute_duration_us=header.compute_duration_us + output.compute_duration_us,
            kv_capacity_tokens=min(capacities, default=0),
        )
        return Frame(passed_on, tensors)


class Ring:
    """The head's way through all stages, its own at the end."""

    def __init__(self, shard: ShardAssignment, engine: StageEngine, compute: ComputeThread) -> None:
        self._shard = shard
        self.compute = compute
        self.engine = engine
        self._arrived: asyncio.Queue[Frame] = asyncio.Queue()
        self._inbox: FrameInbox | None = None
        self._link: StageLink | None = None

    def connect(self, inbox: FrameInbox, link: StageLink) -> None:
        """Put the other stages in: frames go out over link and come back through inbox."""
        self._inbox, self._link = inbox, link

    async def send(self, plan: StepPlan) -> None:
        """Start a step on its way. Raises LinkBrokenError."""
        frame = Frame(FrameHeader(self._shard.instance_id, self._shard.epoch, plan))
        if self._link is None:
            self._arrived.put_nowait(frame)
        else:
            await self._link.send(frame)

    async def receive(self) -> Frame:
        """The oldest step on its way, once every stage before the head has computed it or one has failed. Raises LinkBrokenError."""
        return await (self._arrived.get() if self._inbox is None else self._inbox.get())

    async def finish(self, frame: Frame, read: Callable[[StageOutput], R]) -> R:
        """Run the head's own layers and read what they made, on the compute thread. Raises StepFailedError when some stage failed."""
        plan = frame.header.plan
        if (failure := frame.header.failure) is not None:
            await self.compute.run(lambda: self.engine.update_sequences(plan))
            raise StepFailedError(f"stage {failure.stage} failed: {failure.message}")
        try:
            return await self.compute.run(
                lambda: read(self.engine.run_step(plan, take_activation(frame))), num_tokens=count_tokens(plan)
            )
        except STEP_FAULTS as error:
            get_logger().error("step_failed", step=plan.step, stage=self._shard.stage, exc_info=error)
            raise StepFailedError(f"stage {self._shard.stage} failed: {error}") from error


def count_tokens(plan: StepPlan) -> int:
    """Tokens whose forward a step runs."""
    return sum(len(part.token_ids) for part in plan.sequences)


def take_activation(frame: Frame) -> Tensor | None:
    """The activation that came with a frame; none from the head to stage 0."""
    if len(frame.tensors) > 1:
        raise InternalError(f"a frame came with {len(frame.tensors)} tensors where one was expected")
    return frame.tensors[0] if frame.tensors else None
