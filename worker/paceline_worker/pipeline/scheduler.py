"""What the next step computes: pure bookkeeping over token counts, no tensors, no clock, no I/O.

Every step decodes one token of every sequence whose prompt is done and runs one chunk of the oldest prompt that is not. The last
token of a prompt is a step of its own, as in mlx-lm, so that a prompt's logits do not depend on how it was cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline_services.domain.steps import SequenceStep, StepPlan
from paceline_services.errors import OverloadedError
from paceline_services.ids import SequenceId


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds: sequences computed at once, sequences waiting beyond them, prompt tokens per step."""

    max_running: int = 8
    max_waiting: int = 64
    chunk_tokens: int = 128


@dataclass(slots=True)
class _Progress:
    tokens: list[int]
    num_computed: int = 0

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_computed


@dataclass(slots=True)
class Scheduler:
    """Sequences of one epoch: waiting, running, and closed since the last step."""

    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    _waiting: dict[SequenceId, _Progress] = field(default_factory=dict)
    _running: dict[SequenceId, _Progress] = field(default_factory=dict)
    _closed: list[SequenceId] = field(default_factory=list)
    _last_sequence: int = 0
    _last_step: int = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def check_room(self, num_sequences: int) -> None:
        """Raise OverloadedError when so many more sequences would overfill the queue."""
        room = self.limits.max_running + self.limits.max_waiting - len(self._running) - len(self._waiting)
        if num_sequences > room:
            raise OverloadedError(
                f"{self.num_running} requests are running and {self.num_waiting} wait: try again later",
                reason="QUEUE_FULL",
            )

    def add(self, prompt: Sequence[int]) -> SequenceId:
        """Queue a prompt (at least one token)."""
        self._last_sequence += 1
        sequence_id = SequenceId(self._last_sequence)
        self._waiting[sequence_id] = _Progress(list(prompt))
        return sequence_id

    def append(self, sequence_id: SequenceId, token: int) -> None:
        """A token was drawn for a running sequence: decode it in the next step. Unknown (closed meanwhile): nothing."""
        if progress := self._running.get(sequence_id):
            progress.tokens.append(token)

    def close(self, sequence_id: SequenceId) -> None:
        """The sequence is finished or cancelled: its KV cache is freed by the next step. Unknown: nothing."""
        self._waiting.pop(sequence_id, None)
        if self._running.pop(sequence_id, None):
            self._closed.append(sequence_id)

    def next_plan(self) -> StepPlan | None:
        """The next step, or None when there is nothing to do. The caller must run it."""
        opened = self._open_waiting()
        steps = tuple(self._plan_sequences())
        if not (steps or opened or self._closed):
            return None
        self._last_step += 1
        closed, self._closed = tuple(self._closed), []
        return StepPlan(self._last_step, opened=opened, closed=closed, sequences=steps)

    def wants_logits(self, step: SequenceStep) -> bool:
        """Whether the step reaches the sequence's last known token, so that the next one is drawn from it."""
        progress = self._running.get(step.sequence_id)
        return progress is not None and step.start_position + len(step.token_ids) == len(progress.tokens)

    def _open_waiting(self) -> tuple[SequenceId, ...]:
        opened = tuple(self._waiting)[: max(0, self.limits.max_running - len(self._running))]
        for sequence_id in opened:
            self._running[sequence_id] = self._waiting.pop(sequence_id)
        return opened

    def _plan_sequences(self) -> list[SequenceStep]:
        steps = []
        chunk_given = False
        for sequence_id, progress in self._running.items():
            is_prefill = progress.num_left > 1
            if is_prefill and chunk_given:
                continue
            chunk_given = chunk_given or is_prefill
            count = min(self.limits.chunk_tokens, progress.num_left - 1) if is_prefill else progress.num_left
            if count:
                steps.append(_take(sequence_id, progress, count))
        return steps


def _take(sequence_id: SequenceId, progress: _Progress, count: int) -> SequenceStep:
    start = progress.num_computed
    progress.num_computed += count
    return SequenceStep(sequence_id, tuple(progress.tokens[start : start + count]), start)
