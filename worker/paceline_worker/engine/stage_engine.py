"""The forward of one stage, step by step, over the KV caches of the sequences that the head opened.

All sequences of a step go through one forward. Which ones, and what is opened, copied, cut and freed, the head's plan says.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from paceline_services.domain.steps import SequenceStep, StepPlan, Tensor
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import SequenceId
from paceline_worker.engine.arrays import from_tensor, to_tensor
from paceline_worker.model.caches import count_bytes
from paceline_worker.model.stage import Part, SequenceCache, StageModel

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What a step made here: the activation for the next stage, or on the last stage logits [wanted, vocab] by sequence."""

    activation: Tensor | None = None
    logits: Mapping[SequenceId, Logits] = field(default_factory=dict)
    compute_duration_us: int = 0


class StageEngine:
    """Owns every KV cache of the runner. Called from one thread only."""

    def __init__(self, model: StageModel, *, is_first: bool, is_last: bool, capacity_tokens: int = 0) -> None:
        self._model = model
        self.capacity_tokens = capacity_tokens
        """Tokens of KV cache that this stage has room for; 0 where nobody counted."""
        self._is_first = is_first
        self._is_last = is_last
        self._sequences: dict[SequenceId, SequenceCache] = {}

    @property
    def can_cut(self) -> bool:
        """Whether sequences can be cut back to any of their tokens, on every stage."""
        return self._model.can_cut

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @property
    def cache_bytes(self) -> int:
        """Bytes held by KV caches now."""
        return sum(count_bytes(sequence.layers) for sequence in list(self._sequences.values()))

    def drop_sequences(self) -> None:
        """Free every KV cache: the epoch is over."""
        self._sequences.clear()
        mx.clear_cache()

    def update_sequences(self, plan: StepPlan) -> None:
        """Trim, fork, close and open sequences as the plan says; runs no forward."""
        for trim in plan.trimmed:
            if not self._model.trim(self._find(trim.sequence_id), trim.num_tokens):
                raise InvalidRequestError(f"the KV cache of sequence {trim.sequence_id} cannot be cut back")
        for fork in plan.forked:
            self._sequences[fork.sequence_id] = self._model.fork(self._find(fork.source_id), fork.num_tokens)
        for closed in plan.closed:
            self._sequences.pop(closed, None)
        for opened in plan.opened:
            self._sequences[opened] = self._model.make_cache()
        if plan.closed:
            mx.clear_cache()

    def run_step(self, plan: StepPlan, activation: Tensor | None = None) -> StageOutput:
        """Run a step: an activation [tokens, hidden] (none on the first stage) to the next activation or the wanted logits.

        Raises InvalidRequestError when plan, activation and caches do not agree; every sequence of the plan must then be closed.
        """
        self.update_sequences(plan)
        if not plan.sequences:
            return StageOutput()
        started = time.perf_counter()
        parts = [self._make_part(step) for step in plan.sequences]
        output = self._model.forward(self._make_inputs(plan, activation), parts)
        if self._is_last:
            logits = _split_logits(plan.sequences, output)
            return StageOutput(logits=logits, compute_duration_us=_microseconds_since(started))
        return StageOutput(to_tensor(output), compute_duration_us=_microseconds_since(started))

    def _make_inputs(self, plan: StepPlan, activation: Tensor | None) -> mx.array:
        num_tokens = sum(len(step.token_ids) for step in plan.sequences)
        if self._is_first:
            return mx.array([token for step in plan.sequences for token in step.token_ids], mx.int32)
        if activation is None or activation.header.shape[0] != num_tokens:
            found = "no activation" if activation is None else f"an activation {list(activation.header.shape)}"
            raise InvalidRequestError(f"step {plan.step} of {num_tokens} tokens came with {found}")
        return from_tensor(activation)

    def _make_part(self, step: SequenceStep) -> Part:
        sequence = self._find(step.sequence_id)
        if sequence.num_tokens != step.start_position:
            raise InvalidRequestError(
                f"sequence {step.sequence_id} has {sequence.num_tokens} tokens here, the step starts at {step.start_position}"
            )
        # More follows of a prompt whose logits are wanted, while a token that is decoded is the last one, and its guesses are.
        is_prompt = not step.is_answer and (not step.num_logits or step.num_to_come > 0)
        return Part(sequence, len(step.token_ids), step.num_logits, step.num_to_come, is_prompt)

    def _find(self, sequence_id: SequenceId) -> SequenceCache:
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            raise InvalidRequestError(f"sequence {sequence_id} was never opened on this stage")
        return sequence


def _split_logits(steps: Sequence[SequenceStep], output: mx.array) -> dict[SequenceId, Logits]:
    """Evaluates the output; the rows of each sequence that wants logits."""
    rows = np.array(output, np.float32)
    split: dict[SequenceId, Logits] = {}
    start = 0
    for step in steps:
        if step.num_logits:
            split[step.sequence_id] = rows[start : start + step.num_logits]
            start += step.num_logits
    return split


def _microseconds_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1e6)
