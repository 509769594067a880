"""What the next step computes: pure bookkeeping over token counts, no tensors, no clock, no I/O.

Continuous batching: sequences join and leave between steps. While one step is on its way through the stages the next ones follow it:
with P stages the sequences that decode are divided over P steps of nearly the same size, and chunks of a prompt follow each other
without waiting. A sequence whose next token is not known yet takes part in no other step.

A step decodes its share of the sequences and fills up with chunks of prompts, as many tokens as measured times allow (costs.py). The
last token of a prompt is computed like those that are decoded, as in mlx-lm, so that a prompt's logits do not depend on how it was cut.

Who starts is decided by turns (waiting.py) and room (memory.py). When running sequences outgrow the room, the one that started last
gives its own back and waits for another turn; it is computed again from its tokens. So are all when other stages take over (restart).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from paceline_services.domain.steps import SequenceFork, SequenceStep, SequenceTrim, StepPlan
from paceline_services.errors import ContextLengthError
from paceline_services.ids import SequenceId
from paceline_worker.pipeline.costs import StepCosts
from paceline_worker.pipeline.memory import Found, KvMemory
from paceline_worker.pipeline.waiting import FairQueue

WORTH_WAITING = 16
"""Tokens that must be saved for a prompt to wait until another one with the same beginning is computed."""
AGAIN_TOKENS = 32
"""Tokens of an answer that are computed again in one step: twice as dear as a prompt's, as they get the bits that decoding gave them."""
SCORED_TOKENS = 32
"""Tokens of a prompt whose logits are wanted that are computed in one step: each has a row of the whole vocabulary."""
SMALLEST_LAST_CHUNK = 64
"""Where chunks follow each other through several stages the last ones are smaller: the stages behind the first finish sooner after it."""
Drafts = Callable[[SequenceId, int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds: sequences computed at once, sequences waiting beyond them, prompt tokens per step."""

    max_running: int = 32
    max_waiting: int = 256
    chunk_tokens: int = 512


@dataclass(slots=True)
class _Sequence:
    """tokens: all that are known, the first num_prompt those of the prompt. num_sent: those whose forward was planned.
    num_cached: those in the caches, wrong guesses included. turn: counted up as sequences start. is_scored: the prompt's logits are
    wanted, so nothing that is kept of it can be used."""

    client: str
    tokens: list[int]
    num_prompt: int
    num_sent: int = 0
    num_cached: int = 0
    num_in_flight: int = 0
    is_awaiting: bool = False
    turn: int = 0
    is_scored: bool = False

    def forget_caches(self) -> None:
        """Nothing of it is computed any more."""
        self.num_sent = self.num_cached = self.num_in_flight = 0
        self.is_awaiting = False

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_sent

    @property
    def is_decoding(self) -> bool:
        return self.num_left <= 1

    @property
    def num_of_prompt_left(self) -> int:
        """Tokens of the prompt to be computed in chunks: all but its last, which is computed like those that are decoded."""
        return self.num_prompt - 1 - self.num_sent

    @property
    def is_ready(self) -> bool:
        """Whether its last known token can be decoded now."""
        return self.num_left == 1 and not self.is_awaiting


@dataclass(frozen=True, slots=True)
class Plan:
    """A step to run, and the sequences that left the queue with it: how many of their tokens were found in the cache."""

    step: StepPlan
    started: dict[SequenceId, int]


@dataclass(slots=True)
class Scheduler:
    """Sequences of one head: waiting and running. memory: room for their caches; costs: what steps take."""

    limits: SchedulerLimits
    memory: KvMemory
    num_stages: int = 1
    costs: StepCosts = field(default_factory=StepCosts)
    _waiting: FairQueue[SequenceId] = field(init=False)
    _sequences: dict[SequenceId, _Sequence] = field(default_factory=dict)
    _running: dict[SequenceId, _Sequence] = field(default_factory=dict)
    _in_flight: list[StepPlan] = field(default_factory=list)
    _last_sequence: int = 0
    _last_step: int = 0
    _last_turn: int = 0

    def __post_init__(self) -> None:
        self._waiting = FairQueue(self.limits.max_waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps that were planned and are not back yet."""
        return len(self._in_flight)

    def check_size(self, num_tokens: int) -> None:
        """Raise ContextLengthError when a sequence of so many tokens can never fit the KV cache."""
        if not self.memory.can_ever_hold(num_tokens):
            raise ContextLengthError(
                f"prompt and answer may take {num_tokens} tokens, the KV cache of this instance holds {self.memory.capacity_tokens}: "
                "shorten the prompt, ask for fewer tokens (max_tokens) or place the model where more memory is free",
                reason="KV_CACHE_TOO_SMALL",
                capacity_tokens=str(self.memory.capacity_tokens),
            )

    def submit(
        self,
        prompt: Sequence[int],
        client: str = "",
        answers: Sequence[Sequence[int]] = ((),),
        *,
        is_scored: bool = False,
    ) -> tuple[list[SequenceId], list[SequenceId]]:
        """Queue a prompt (at least one token) once for each answer, which goes on after the tokens that it has already.

        is_scored: the first one's steps have the logits of the whole prompt too.

        Returns the new sequences, and those of other clients that lost their place in the queue to them. Raises OverloadedError.
        """
        num_free = max(0, self.limits.max_running - len(self._running))
        dropped = self._waiting.make_room(client, len(answers), num_free)
        for sequence_id in dropped:
            self.close(sequence_id)
        queued = [self._queue(prompt, client, answer) for answer in answers]
        self._sequences[queued[0]].is_scored = is_scored
        return queued, dropped

    def append(self, sequence_id: SequenceId, tokens: Sequence[int]) -> None:
        """Tokens were drawn for a running sequence: the last one is decoded next. Unknown (closed meanwhile): nothing."""
        if sequence := self._running.get(sequence_id):
            sequence.is_awaiting = False
            sequence.tokens.extend(tokens)
            sequence.num_sent = len(sequence.tokens) - 1

    def close(self, sequence_id: SequenceId, *, keep: bool = False) -> None:
        """The sequence is finished or cancelled. keep: its cache may serve prompts to come. Unknown: nothing."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        self._waiting.remove(sequence.client, sequence_id)
        if self._running.pop(sequence_id, None) is None:
            return
        if keep:
            self.memory.keep(sequence_id, sequence.tokens[: sequence.num_sent])
        else:
            self.memory.release(sequence_id)

    def restart(self, memory: KvMemory, num_stages: int) -> None:
        """Other stages take over, with empty caches: what ran goes back to the front of the queue, in the order in which it started.

        Sequences keep their numbers and all their tokens, and are computed again from them; steps are counted anew.
        """
        self.memory, self.num_stages = memory, num_stages
        self.costs.forget()
        self._in_flight.clear()
        self._last_step = 0
        for sequence_id in sorted(self._running, key=lambda one: self._running[one].turn, reverse=True):
            self._running.pop(sequence_id).forget_caches()
            self._waiting.put_back(sequence_id)

    def finish_step(self) -> StepPlan:
        """The oldest step in flight is back, computed or failed. Returns it."""
        step = self._in_flight.pop(0)
        for part in step.sequences:
            if sequence := self._running.get(part.sequence_id):
                sequence.num_in_flight -= 1
        return step

    def next_plan(self, draft: Drafts | None = None) -> Plan | None:
        """The next step, or None when there is nothing to do now. The caller must run it, and tell finish_step when it is back.

        draft: guesses the tokens that follow a sequence, given how many tokens of others its step has.
        """
        if len(self._in_flight) >= self._most_in_flight():
            return None
        started = dict(self._start_waiting())
        trimmed: list[SequenceTrim] = []
        parts = [*self._plan_decoding(draft, trimmed), *self._plan_prompts()]
        closed = self.memory.take_evicted()
        if not (parts or started or closed):
            return None
        self._last_step += 1
        step = StepPlan(
            self._last_step,
            opened=tuple(one for one, found in started.items() if found is None),
            closed=closed,
            trimmed=tuple(trimmed),
            sequences=tuple(parts),
            forked=tuple(SequenceFork(one, *_fields(found)) for one, found in started.items() if found),
            is_resumed=not self._in_flight,
        )
        self._in_flight.append(step)
        return Plan(step, {one: found.num_tokens if found else 0 for one, found in started.items()})

    def list_ready(self) -> list[SequenceId]:
        """The sequences that the next step will decode: a share of those that decode; none while enough steps are in flight."""
        if len(self._in_flight) >= self._most_in_flight():
            return []
        return [one for one, sequence in self._running.items() if sequence.is_ready][: self._share]

    # -- who starts --

    def _queue(self, prompt: Sequence[int], client: str, answer: Sequence[int]) -> SequenceId:
        self._last_sequence += 1
        sequence_id = SequenceId(self._last_sequence)
        self._sequences[sequence_id] = _Sequence(client, [*prompt, *answer], len(prompt))
        self._waiting.append(client, sequence_id)
        return sequence_id

    def _start_waiting(self) -> Iterator[tuple[SequenceId, Found | None]]:
        for sequence_id in list(self._waiting):
            if len(self._running) >= self.limits.max_running:
                return
            sequence = self._sequences[sequence_id]
            computed = {one: running.num_sent for one, running in self._running.items()}
            found = None if sequence.is_scored else self.memory.find(sequence.tokens, computed)
            num_found = found.num_tokens if found else 0
            if (
                not sequence.is_scored
                and self._is_prefilling()
                and self.memory.find_coming(sequence.tokens) - num_found >= WORTH_WAITING
            ):
                continue
            if not self.memory.start(sequence_id, sequence.tokens, len(sequence.tokens) + 1):
                return
            self._waiting.take(sequence.client, sequence_id)
            self._running[sequence_id] = sequence
            sequence.num_sent = sequence.num_cached = num_found
            self._last_turn += 1
            sequence.turn = self._last_turn
            yield sequence_id, found

    def _is_prefilling(self) -> bool:
        return any(not sequence.is_decoding for sequence in self._running.values())

    def _preempt(self) -> SequenceId | None:
        """Put the sequence that started last, and is in no step now, back into the queue. None where all are in flight."""
        free = [one for one, sequence in self._running.items() if not sequence.num_in_flight]
        if not free:
            return None
        victim = max(free, key=lambda one: self._running[one].turn)
        sequence = self._running.pop(victim)
        self.memory.release(victim)
        sequence.forget_caches()
        self._waiting.put_back(victim)
        return victim

    # -- what a step computes --

    @property
    def _share(self) -> int:
        """Sequences that one step decodes, so that those that decode are divided evenly over a step for each stage."""
        num_decoding = sum(sequence.is_decoding for sequence in self._running.values())
        return -(-num_decoding // self.num_stages)

    def _most_in_flight(self) -> int:
        """One step a stage; one more of pure prefill, so that no stage waits for a link."""
        return self.num_stages if self._share or self.num_stages == 1 else self.num_stages + 1

    def _plan_decoding(self, draft: Drafts | None, trimmed: list[SequenceTrim]) -> list[SequenceStep]:
        ready = self.list_ready()
        steps = []
        for sequence_id in ready:
            guesses = tuple(draft(sequence_id, len(ready) - 1)) if draft else ()
            if step := self._plan_token(sequence_id, guesses, trimmed):
                steps.append(step)
        return steps

    def _plan_token(
        self, sequence_id: SequenceId, guesses: tuple[int, ...], trimmed: list[SequenceTrim]
    ) -> SequenceStep | None:
        """The last known token of a sequence and guesses that may follow it; None when there is no room for it now."""
        sequence = self._running.get(sequence_id)
        if sequence is None:
            return None  # gave its room back
        if guesses and not self.memory.reserve(sequence_id, sequence.num_sent + 1 + len(guesses)):
            guesses = ()
        while not self.memory.reserve(sequence_id, sequence.num_sent + 1):
            if self._preempt() in {None, sequence_id}:
                return None
        start = sequence.num_sent
        if sequence.num_cached > start:
            trimmed.append(SequenceTrim(sequence_id, start))
        sequence.num_sent = start + 1
        sequence.num_cached = start + 1 + len(guesses)
        sequence.num_in_flight += 1
        sequence.is_awaiting = True
        # Those that have had their turn come after the others: micro-batches stay mixed as sequences come and go.
        self._running[sequence_id] = self._running.pop(sequence_id)
        return SequenceStep(sequence_id, (sequence.tokens[start], *guesses), start, num_logits=1 + len(guesses))

    def _plan_prompts(self) -> Iterator[SequenceStep]:
        """Chunks of what is not computed: first of answers that are computed again, as stages take those before prompts."""
        behind = [(one, sequence) for one, sequence in self._running.items() if sequence.num_left > 1]
        behind.sort(key=lambda pair: pair[1].num_of_prompt_left > 0)
        share = self._share
        budget = self.costs.choose_chunk(share, self.limits.chunk_tokens) if behind else 0
        for sequence_id, sequence in behind:
            if budget < 1:
                return
            is_answer = sequence.num_of_prompt_left <= 0
            left = sequence.num_left - 1 if is_answer else sequence.num_of_prompt_left
            count = min(budget, left, AGAIN_TOKENS if is_answer else left)
            is_scored = sequence.is_scored and not is_answer
            if is_scored:
                count = min(count, SCORED_TOKENS)
            elif self.num_stages > 1 and not share:
                count = min(count, max(SMALLEST_LAST_CHUNK, -(-left // 2)))
            budget -= count
            start = sequence.num_sent
            sequence.num_sent = sequence.num_cached = start + count
            sequence.num_in_flight += 1
            tokens = tuple(sequence.tokens[start : start + count])
            num_logits = count if is_scored else 0
            yield SequenceStep(sequence_id, tokens, start, num_logits, sequence.num_left, is_answer)


def _fields(found: Found) -> tuple[SequenceId, int]:
    return found.source_id, found.num_tokens
