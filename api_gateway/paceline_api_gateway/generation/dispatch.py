"""From a canonical request to the events of some head.

Until the first token nothing is lost by asking again: a head that is gone or going costs time, not the request, and one whose queue is
full costs a try at each of the model's other heads. What happens after the first token is passed on as it comes, errors too. (A request
that goes on where a lost head left off will find its place here.)
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc
import grpc.aio

from paceline_api_gateway.generation.admission import OpenRequests, choose_soonest
from paceline_api_gateway.generation.deadlines import Deadline, Deadlines, Phase
from paceline_api_gateway.generation.heads import HeadConnections
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.routing.affinity import PrefixHash, hash_prefixes
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
from paceline_services.errors import OverloadedError, PacelineError, TimeoutExpiredError, UnavailableError
from paceline_services.logs import get_logger

_GRPC_SLACK_S = 1.0
"""The head's own deadline lies this much later than ours, so that ours is the one that speaks."""
_SAYS_NOTHING_OF_THE_REQUEST = frozenset({"UNAVAILABLE", "INSTANCE_BROKEN", "DRAINING", "MODEL_NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may take and how many may be open; see GatewaySettings."""

    timeout_s: float = 600.0
    max_open: int = 1024
    max_open_per_client: int = 256


@dataclass(slots=True)
class _Course:
    """How one request has fared so far."""

    request: GenerateRequest
    deadline: Deadline
    prefixes: tuple[PrefixHash, ...]
    give_up: float
    """Time of the loop's clock after which no head is asked again; the time that heads held the request does not count."""
    start: float
    sent: float = 0.0
    tried: list[str] = field(default_factory=list)
    """Addresses of heads that failed or refused it."""
    refusals: list[OverloadedError] = field(default_factory=list)
    queue_s: float = 0.0


class Dispatcher:
    """Sends requests to heads."""

    def __init__(self, table: RouteTable, metrics: GatewayMetrics, limits: RequestLimits) -> None:
        self.limits = limits
        self._table = table
        self._metrics = metrics
        self._open = OpenRequests(limits.max_open, limits.max_open_per_client)
        self._deadlines = Deadlines()
        self._heads = HeadConnections()
        self._backoff = Backoff(limit_s=2.0)

    async def generate(self, request: GenerateRequest, timeout_s: float) -> AsyncGenerator[GenerationEvent, None]:
        """Events of the request, the first when it has left its head's queue; timeout_s bounds all waiting too.

        Closing the generator cancels the request on every stage. Raises PacelineError subclasses.
        """
        with (
            self._count_refusals(),
            self._open.admit(request.client_id),
            self._deadlines.start(timeout_s) as deadline,
            self._metrics.in_flight.track_inprogress(),
        ):
            now = asyncio.get_running_loop().time()
            course = _Course(request, deadline, hash_prefixes(request), now + self._table.wait_s, now)
            has_started = has_answer = False
            while True:
                instance = await self._find(course)
                try:
                    async with aclosing(self._ask(instance, course)) as events:
                        async for event in events:
                            if not has_answer:
                                if not isinstance(event, GenerationStarted):
                                    has_answer = True
                                    self._note_answer(course)
                                elif has_started:
                                    continue
                                has_started = True
                            yield event
                    return
                except PacelineError as error:
                    if has_answer:
                        raise
                    await self._recover(course, instance, error)

    def stop_within(self, timeout_s: float) -> None:
        """End every running request within a time in seconds, with an error that says why."""
        self._deadlines.stop_within(timeout_s)

    async def close(self) -> None:
        await self._heads.close()

    @contextmanager
    def _count_refusals(self) -> Iterator[None]:
        try:
            yield
        except OverloadedError as error:
            self._metrics.refused.labels(error.reason).inc()
            raise

    async def _find(self, course: _Course) -> Instance:
        """The instance to ask next."""
        course.deadline.phase = Phase.FINDING
        find = partial(self._table.find, course.request.model_id, course.give_up, course.prefixes, course.tried)
        choice = await course.deadline.guard(find)
        if choice.affinity is not None and not course.tried:
            self._metrics.affinity.labels(choice.affinity.value).inc()
        return choice.instance

    async def _ask(self, instance: Instance, course: _Course) -> AsyncGenerator[GenerationEvent, None]:
        """The events of one try."""
        request, deadline = course.request, course.deadline
        reasons: list[str] = []
        async with AsyncExitStack() as stack:
            stack.enter_context(self._table.count(instance, request.num_choices))
            head = await stack.enter_async_context(self._heads.use(instance.head_address, self._table.head_addresses))
            events = await stack.enter_async_context(aclosing(head.generate(request, deadline.left_s + _GRPC_SLACK_S)))
            wait_for_event = partial(anext, events, None)
            deadline.phase = Phase.QUEUED
            course.sent = asyncio.get_running_loop().time()
            while (event := await deadline.guard(wait_for_event)) is not None:
                match event:
                    case ChoiceDelta():  # first, as nearly all are
                        pass
                    case GenerationStarted():
                        deadline.phase = Phase.GENERATING
                        self._note_started(course, instance)
                    case ChoiceFinished():
                        reasons.append(event.finish_reason.value)
                    case GenerationCompleted():
                        self._record(course, event, reasons)
                        yield event
                        return
                yield event
        raise UnavailableError("the head ended its answer too early: try again", reason="INSTANCE_BROKEN")

    async def _recover(self, course: _Course, instance: Instance, error: PacelineError) -> None:
        """Return when another try is worth it, now; else raise what the client is to hear."""
        deadline, model_id = course.deadline, course.request.model_id
        if isinstance(error, TimeoutExpiredError) and deadline.left_s <= 0:
            raise deadline.error() from error
        now = asyncio.get_running_loop().time()
        course.give_up += now - course.sent
        is_late = now >= course.give_up
        course.tried.append(instance.head_address)
        if isinstance(error, OverloadedError):
            course.refusals.append(error)
            if is_late or not self._table.has_untried(model_id, course.tried):
                raise choose_soonest(course.refusals)
            self._note_failure(course, instance, error)
            return
        if is_late or not is_worth_another_try(error):
            raise error
        self._note_failure(course, instance, error)
        pause_s = self._backoff.pause_s(len(course.tried))
        await deadline.guard(partial(self._table.wait_for_change, pause_s))

    def _note_started(self, course: _Course, instance: Instance) -> None:
        self._table.remember(course.prefixes, instance)
        course.queue_s = asyncio.get_running_loop().time() - course.sent
        self._metrics.queue_wait.labels(course.request.model_id).observe(course.queue_s)

    def _note_answer(self, course: _Course) -> None:
        waited_s = asyncio.get_running_loop().time() - course.start
        self._metrics.first_token.labels(course.request.model_id).observe(waited_s)

    def _note_failure(self, course: _Course, instance: Instance, error: PacelineError) -> None:
        self._metrics.retries.labels(course.request.model_id).inc()
        get_logger().info(
            "head_failed_before_answer",
            request_id=course.request.request_id,
            instance_id=instance.spec.instance_id,
            epoch=instance.epoch,
            failure=error.message,
        )

    def _record(self, course: _Course, event: GenerationCompleted, reasons: list[str]) -> None:
        request = course.request
        self._metrics.tokens.labels(request.model_id, "prompt").inc(event.num_prompt_tokens)
        self._metrics.tokens.labels(request.model_id, "completion").inc(event.num_completion_tokens)
        decode_s = max(event.total_duration_ms - event.time_to_first_token_ms, 1e-3) / 1e3
        get_logger().info(
            "request_completed",
            request_id=request.request_id,
            model_id=request.model_id,
            num_prompt_tokens=event.num_prompt_tokens,
            num_cached_tokens=event.num_cached_tokens,
            num_tokens=event.num_completion_tokens,
            queue_ms=round(course.queue_s * 1e3, 1),
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
