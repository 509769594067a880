"""The forward of one stage, step by step, over the KV caches of the sequences that the head opened.

Sequences of a step are run one after another, each with a cache of its own: right for any mix of lengths.
Batching them into one forward is the scheduler's next step, and changes nothing outside this file.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from paceline_services.domain.steps import SequenceStep, StepPlan, Tensor
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import SequenceId
from paceline_worker.engine.arrays import from_tensor, to_tensor
from paceline_worker.model.shard import StageModel

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What a step made here: activations for the next stage, or on the head logits [vocab] of the sequences that wanted them."""

    tensors: tuple[Tensor, ...] = ()
    logits: Mapping[SequenceId, Logits] = field(default_factory=dict)
    compute_duration_us: int = 0


@dataclass(slots=True)
class _Sequence:
    cache: list[Any]
    num_tokens: int = 0


class StageEngine:
    """Owns every KV cache of the runner. Called from one thread only."""

    def __init__(self, model: StageModel, *, is_first: bool, is_head: bool) -> None:
        self._model = model
        self._is_first = is_first
        self._is_head = is_head
        self._sequences: dict[SequenceId, _Sequence] = {}

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @property
    def cache_bytes(self) -> int:
        """Bytes held by KV caches now."""
        return sum(layer.nbytes for sequence in self._sequences.values() for layer in sequence.cache)

    def update_sequences(self, plan: StepPlan) -> None:
        """Open, close and trim sequences as the plan says; runs no forward."""
        for closed in plan.closed:
            self._sequences.pop(closed, None)
        for opened in plan.opened:
            self._sequences[opened] = _Sequence(self._model.make_cache())
        for trim in plan.trimmed:
            self._trim(trim.sequence_id, trim.num_tokens)
        if plan.closed:
            mx.clear_cache()

    def run_step(
        self, plan: StepPlan, activations: Sequence[Tensor], wanted: Collection[SequenceId] = ()
    ) -> StageOutput:
        """Run a step: activations (one per sequence of the plan, none on the first stage) to activations or wanted logits.

        Raises InvalidRequestError when plan and caches do not agree; every sequence of the plan must then be closed.
        """
        self.update_sequences(plan)
        if not self._is_first and len(activations) != len(plan.sequences):
            raise InvalidRequestError(
                f"step {plan.step} has {len(plan.sequences)} sequences and {len(activations)} activations"
            )
        started = time.perf_counter()
        tensors: list[Tensor] = []
        logits: dict[SequenceId, Logits] = {}
        for index, step in enumerate(plan.sequences):
            inputs = mx.array([step.token_ids], mx.int32) if self._is_first else from_tensor(activations[index])
            output = self._forward(step, inputs)
            if not self._is_head:
                tensors.append(to_tensor(output))
            elif step.sequence_id in wanted:
                logits[step.sequence_id] = np.array(output.reshape(-1), np.float32)
            else:
                mx.eval([layer.state for layer in self._sequences[step.sequence_id].cache])
        return StageOutput(tuple(tensors), logits, round((time.perf_counter() - started) * 1e6))

    def _forward(self, step: SequenceStep, inputs: mx.array) -> mx.array:
        sequence = self._sequences.get(step.sequence_id)
        if sequence is None:
            raise InvalidRequestError(f"sequence {step.sequence_id} was never opened on this stage")
        if sequence.num_tokens != step.start_position:
            raise InvalidRequestError(
                f"sequence {step.sequence_id} has {sequence.num_tokens} tokens here, the step starts at {step.start_position}"
            )
        if inputs.shape[1] != len(step.token_ids):
            raise InvalidRequestError(f"{len(step.token_ids)} tokens came with an activation of {inputs.shape[1]}")
        sequence.num_tokens += len(step.token_ids)
        return self._model.forward(inputs, sequence.cache)

    def _trim(self, sequence_id: SequenceId, num_tokens: int) -> None:
        sequence = self._sequences[sequence_id]
        if not self._model.trim(sequence.cache, sequence.num_tokens - num_tokens):
            raise InvalidRequestError(f"the KV cache of sequence {sequence_id} cannot be cut back")
        sequence.num_tokens = num_tokens
