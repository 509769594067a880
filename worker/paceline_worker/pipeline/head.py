"""The head: admits requests, runs steps until all are answered, and turns logits into events.

One task runs the steps; requests add sequences and read their events from queues. A request whose iteration ends early is
cancelled: its sequences are closed on every stage by the next step.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from paceline_services.domain.generation import (
    ChoiceFinished,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.errors import ContextLengthError, InvalidRequestError, PacelineError, UnavailableError
from paceline_services.ids import SequenceId, make_request_id
from paceline_services.logs import get_logger
from paceline_worker.engine.stage_engine import Logits
from paceline_worker.pipeline.choice import Choice
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.scheduler import Scheduler
from paceline_worker.pipeline.stages import Ring, StepFailedError, StepResult
from paceline_worker.pipeline.vocabulary import Vocabulary

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20


@dataclass(slots=True)
class _Request:
    """One request in flight. Its events are bounded by its tokens, which the context bounds."""

    started: float
    events: asyncio.Queue[GenerationEvent | PacelineError] = field(default_factory=asyncio.Queue)
    choices: dict[SequenceId, Choice] = field(default_factory=dict)
    first_token: float = 0.0
    num_steps: int = 0
    link_duration_s: float = 0.0


class Head:
    """Answers requests with one instance, as long as its epoch lives."""

    def __init__(
        self, ring: Ring, compute: ComputeThread, vocabulary: Vocabulary, scheduler: Scheduler, context_length: int
    ) -> None:
        self._ring = ring
        self._compute = compute
        self._vocabulary = vocabulary
        self._scheduler = scheduler
        self._context_length = context_length
        self._requests: dict[SequenceId, _Request] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal: PacelineError | None = None

    async def wait_idle(self) -> None:
        """Return when no request is in flight."""
        await self._idle.wait()

    def refuse(self, reason: PacelineError) -> None:
        """Admit no more; requests that run may finish."""
        self._refusal = self._refusal or reason

    def fail_all(self, reason: PacelineError) -> None:
        """The epoch is over: end every request with the reason and admit no more."""
        self.refuse(reason)
        for sequence_id, request in list(self._requests.items()):
            request.events.put_nowait(reason)
            self._forget(sequence_id)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Answer one request. Raises InvalidRequestError, ContextLengthError, OverloadedError, UnavailableError."""
        if self._refusal is not None:
            raise self._refusal
        _check_request(request)
        running = _Request(time.perf_counter())
        prompt = await asyncio.to_thread(self._vocabulary.encode_prompt, request)
        self._vocabulary.check_tokens(request.sampling.logit_bias)
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        self._admit(request, running, prompt, seed)
        yield GenerationStarted(request.request_id or make_request_id(), len(prompt), seed)
        choices = list(running.choices.values())
        num_open = len(choices)
        try:
            while num_open:
                event = await running.events.get()
                if isinstance(event, PacelineError):
                    raise event
                num_open -= isinstance(event, ChoiceFinished)
                yield event
            yield _complete(running, prompt, choices)
        finally:
            for sequence_id in list(running.choices):
                self._forget(sequence_id)

    async def run(self) -> None:
        """Run steps for ever. Raises LinkBrokenError when the epoch is over."""
        while True:
            plan = self._scheduler.next_plan()
            if plan is None:
                self._work.clear()
                await self._work.wait()
                continue
            wanted = {step.sequence_id for step in plan.sequences if self._scheduler.wants_logits(step)}
            touched = [step.sequence_id for step in plan.sequences]
            try:
                result = await self._ring.run_step(plan, wanted)
            except StepFailedError as error:
                self._fail(touched, error)
                continue
            self._count_step(touched, result)
            await self._draw_tokens(result)

    def _admit(self, request: GenerateRequest, running: _Request, prompt: list[int], seed: int) -> None:
        room = self._context_length - len(prompt)
        wanted = request.limits.max_tokens
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the context of this instance {self._context_length}: shorten the prompt",
                prompt_tokens=str(len(prompt)),
                context_length=str(self._context_length),
            )
        num_choices = request.num_choices or 1
        self._scheduler.check_room(num_choices)
        for index in range(num_choices):
            sequence_id = self._scheduler.add(prompt)
            running.choices[sequence_id] = Choice(
                request, index, seed, prompt, min(wanted or room, room), self._vocabulary
            )
            self._requests[sequence_id] = running
        self._idle.clear()
        self._work.set()

    async def _draw_tokens(self, result: StepResult) -> None:
        ready: list[tuple[SequenceId, Choice, Logits]] = [
            (sequence_id, request.choices[sequence_id], logits)
            for sequence_id, logits in result.output.logits.items()
            if (request := self._requests.get(sequence_id))
        ]
        if not ready:
            return
        events = await self._compute.run(lambda: [choice.accept(logits) for _, choice, logits in ready])
        for (sequence_id, choice, _), answered in zip(ready, events, strict=True):
            if (request := self._requests.get(sequence_id)) is None:
                continue  # cancelled while it was drawn
            request.first_token = request.first_token or time.perf_counter()
            if choice.finished:
                self._forget(sequence_id)
            else:
                self._scheduler.append(sequence_id, choice.tokens[-1])
            for event in answered:
                request.events.put_nowait(event)

    def _count_step(self, touched: list[SequenceId], result: StepResult) -> None:
        for request in {id(found): found for key in touched if (found := self._requests.get(key))}.values():
            request.num_steps += 1
            request.link_duration_s += max(0.0, result.total_duration_s - result.compute_duration_s)

    def _fail(self, touched: list[SequenceId], reason: PacelineError) -> None:
        for sequence_id in touched:
            if request := self._requests.get(sequence_id):
                request.events.put_nowait(UnavailableError(reason.message, reason=reason.reason))
                self._forget(sequence_id)

    def _forget(self, sequence_id: SequenceId) -> None:
        if self._requests.pop(sequence_id, None):
            self._scheduler.close(sequence_id)
            self._work.set()
        if not self._requests:
            self._idle.set()


def _check_request(request: GenerateRequest) -> None:
    sampling = request.sampling
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    penalty = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
    faults = [
        (not 0 <= sampling.temperature <= 2, f"temperature must be in [0, 2], not {sampling.temperature:g}"),
        (not 0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p:g}"),
        (not 0 <= sampling.min_p <= 1, f"min_p must be in [0, 1], not {sampling.min_p:g}"),
        (not penalty > 0, f"repetition_penalty must be above 0, not {penalty:g}"),
        (
            not abs(sampling.presence_penalty) <= 2,
            f"presence_penalty must be in [-2, 2], not {sampling.presence_penalty:g}",
        ),
        (
            not abs(sampling.frequency_penalty) <= 2,
            f"frequency_penalty must be in [-2, 2], not {sampling.frequency_penalty:g}",
        ),
        (any(abs(bias) > 100 for bias in sampling.logit_bias.values()), "logit_bias must be in [-100, 100]"),
        (request.num_choices > MAX_CHOICES, f"num_choices must be at most {MAX_CHOICES}, not {request.num_choices}"),
        (request.num_top_logprobs > MAX_TOP_LOGPROBS, f"num_top_logprobs must be at most {MAX_TOP_LOGPROBS}"),
        (request.num_top_logprobs > 0 and not request.logprobs, "num_top_logprobs needs logprobs"),
        (len(request.limits.stop) > MAX_CHOICES, "at most 16 stop texts are accepted"),
    ]
    for is_fault, message in faults:
        if is_fault:
            raise InvalidRequestError(message)


def _complete(running: _Request, prompt: list[int], choices: list[Choice]) -> GenerationCompleted:
    ended = time.perf_counter()
    completed = GenerationCompleted(
        num_prompt_tokens=len(prompt),
        num_completion_tokens=sum(len(choice.tokens) for choice in choices),
        time_to_first_token_ms=(running.first_token - running.started) * 1e3,
        total_duration_ms=(ended - running.started) * 1e3,
        num_steps=running.num_steps,
        link_duration_ms=running.link_duration_s * 1e3,
    )
    get_logger().info(
        "request_completed",
        num_prompt_tokens=completed.num_prompt_tokens,
        num_tokens=completed.num_completion_tokens,
        ttft_ms=round(completed.time_to_first_token_ms, 1),
        tokens_per_s=round(completed.num_completion_tokens / max(ended - running.started, 1e-9), 2),
        finish_reason=[choice.finished.finish_reason for choice in choices if choice.finished],
    )
    return completed
