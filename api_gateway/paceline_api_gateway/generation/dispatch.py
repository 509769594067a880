"""From a canonical request to the events of some head.

Until the first token nothing is lost by asking again: a head that is gone or going costs time, not the request. What happens after
the first token is passed on as it comes, errors too. (A request that goes on where a lost head left off will find its place here.)
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import grpc
import grpc.aio

from paceline_api_gateway.generation.deadlines import Deadline, Deadlines
from paceline_api_gateway.generation.heads import HeadConnections
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.backoff import Backoff
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.domain.instances import Instance
from paceline_services.errors import PacelineError, UnavailableError
from paceline_services.logs import get_logger

_GRPC_SLACK_S = 1.0
"""The head's own deadline lies this much later than ours, so that ours is the one that speaks."""
_SAYS_NOTHING_OF_THE_REQUEST = frozenset({"UNAVAILABLE", "INSTANCE_BROKEN", "DRAINING", "MODEL_NOT_FOUND"})


class Dispatcher:
    """Sends requests to heads."""

    def __init__(self, table: RouteTable, metrics: GatewayMetrics, request_timeout_s: float) -> None:
        self._table = table
        self._metrics = metrics
        self._deadlines = Deadlines(request_timeout_s)
        self._heads = HeadConnections()
        self._backoff = Backoff(limit_s=2.0)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Events of the request. Closing the generator cancels it on every stage. Raises PacelineError subclasses."""
        with self._deadlines.start() as deadline, self._metrics.in_flight.track_inprogress():
            give_up = asyncio.get_running_loop().time() + self._table.wait_s
            failed: list[str] = []
            has_started = has_answer = False
            while True:
                instance = await deadline.guard(self._table.find(request.model_id, give_up, failed))
                try:
                    async with aclosing(self._ask(instance, request, deadline)) as events:
                        async for event in events:
                            has_answer = has_answer or isinstance(event, ChoiceDelta | ChoiceFinished)
                            if not (has_started and isinstance(event, GenerationStarted)):
                                yield event
                            has_started = True
                    return
                except PacelineError as error:
                    is_late = asyncio.get_running_loop().time() >= give_up
                    if has_answer or is_late or not is_worth_another_try(error):
                        raise
                    failed.append(instance.head_address)
                    self._note_failure(request, instance, error)
                await deadline.guard(self._table.wait_for_change(self._backoff.pause_s(len(failed))))

    def stop_within(self, timeout_s: float) -> None:
        """End every running request within a time in seconds, with an error that says why."""
        self._deadlines.stop_within(timeout_s)

    async def close(self) -> None:
        await self._heads.close()

    async def _ask(
        self, instance: Instance, request: GenerateRequest, deadline: Deadline
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of one try."""
        reasons: list[str] = []
        async with AsyncExitStack() as stack:
            stack.enter_context(self._table.count(instance))
            head = await stack.enter_async_context(self._heads.use(instance.head_address, self._table.head_addresses))
            events = await stack.enter_async_context(aclosing(head.generate(request, deadline.left_s + _GRPC_SLACK_S)))
            while (event := await deadline.guard(anext(events, None))) is not None:
                if isinstance(event, ChoiceFinished):
                    reasons.append(event.finish_reason.value)
                elif isinstance(event, GenerationCompleted):
                    self._record(request, event, reasons)
                yield event
                if isinstance(event, GenerationCompleted):
                    return
        raise UnavailableError("the head ended its answer too early: try again", reason="INSTANCE_BROKEN")

    def _note_failure(self, request: GenerateRequest, instance: Instance, error: PacelineError) -> None:
        self._metrics.retries.labels(request.model_id).inc()
        get_logger().info(
            "head_failed_before_answer",
            request_id=request.request_id,
            instance_id=instance.spec.instance_id,
            epoch=instance.epoch,
            failure=error.message,
        )

    def _record(self, request: GenerateRequest, event: GenerationCompleted, reasons: list[str]) -> None:
        self._metrics.first_token.labels(request.model_id).observe(event.time_to_first_token_ms / 1e3)
        self._metrics.tokens.labels(request.model_id, "prompt").inc(event.num_prompt_tokens)
        self._metrics.tokens.labels(request.model_id, "completion").inc(event.num_completion_tokens)
        decode_s = max(event.total_duration_ms - event.time_to_first_token_ms, 1e-3) / 1e3
        get_logger().info(
            "request_completed",
            request_id=request.request_id,
            model_id=request.model_id,
            num_prompt_tokens=event.num_prompt_tokens,
            num_tokens=event.num_completion_tokens,
            ttft_ms=round(event.time_to_first_token_ms, 1),
            tokens_per_s=round(max(0, event.num_completion_tokens - 1) / decode_s, 2),
            duration_ms=round(event.total_duration_ms, 1),
            finish_reason=reasons,
        )


def is_worth_another_try(error: PacelineError) -> bool:
    """Whether the same request may well be answered by another head, or by this one a little later."""
    cause = error.__cause__
    is_cut = isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.CANCELLED
    return is_cut or error.reason in _SAYS_NOTHING_OF_THE_REQUEST
