"""What a model gives in one piece, divided into stages, for sequences together and alone: the measures of the model-truth suites."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from paceline_services.domain.steps import SequenceStep, StepPlan
from paceline_services.ids import SequenceId
from paceline_worker.engine.stage_engine import Logits, StageEngine
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import LoadedShard, load_shard
from paceline_worker.model.stage import Part, StageModel
from support.architectures import VOCAB_SIZE
from support.pipelines import split_layers

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(21)]
CHUNKS = (PROMPT[:13], PROMPT[13:20], PROMPT[20:])
NUM_TOKENS = 24

ONE, OTHER, FORK = SequenceId(1), SequenceId(2), SequenceId(3)
LONG = tuple((index * 37) % VOCAB_SIZE for index in range(40))
SHORT = tuple((index * 11 + 5) % VOCAB_SIZE for index in range(15))
# Prompts in uneven chunks beside each other, then single tokens, then several tokens at once beside a single one.
PLANS = (
    StepPlan(1, opened=(ONE, OTHER), sequences=(SequenceStep(ONE, LONG[:13], 0), SequenceStep(OTHER, SHORT[:5], 0))),
    StepPlan(2, sequences=(SequenceStep(OTHER, SHORT[5:14], 5), SequenceStep(ONE, LONG[13:39], 13))),
    StepPlan(3, sequences=(SequenceStep(ONE, LONG[39:], 39, 1), SequenceStep(OTHER, SHORT[14:], 14, 1))),
    StepPlan(4, sequences=(SequenceStep(OTHER, (7, 9, 4), 15, 3), SequenceStep(ONE, (8,), 40, 1))),
    StepPlan(5, sequences=(SequenceStep(ONE, (3,), 41, 1), SequenceStep(OTHER, (1,), 18, 1))),
)


def load_shards(folder: Path, num_layers: int, num_stages: int, kv_bits: int = 0) -> list[LoadedShard]:
    return [
        load_shard(folder, ShardRange(stage, num_stages, start, end), lambda part: None, kv_bits=kv_bits)
        for stage, (start, end) in enumerate(split_layers(num_layers, num_stages))
    ]


def load_stages(folder: Path, num_layers: int, num_stages: int, kv_bits: int = 0) -> list[StageModel]:
    return [shard.model for shard in load_shards(folder, num_layers, num_stages, kv_bits)]


def write_whole(folder: Path) -> tuple[list[int], mx.array]:
    """Greedy tokens and last logits [vocab] of mlx-lm's own model in one piece."""
    model, _ = load_model(folder)
    cache = make_prompt_cache(model)
    for chunk in CHUNKS:
        logits = model(mx.array([chunk]), cache=cache)[0, -1]
        mx.eval(logits)
    tokens = []
    for _ in range(NUM_TOKENS):
        tokens.append(int(mx.argmax(logits)))
        logits = model(mx.array([[tokens[-1]]]), cache=cache)[0, -1]
    return tokens, logits


def write_divided(stages: Sequence[StageModel]) -> tuple[list[int], mx.array]:
    """The same through stages, each with its own layers and caches."""
    caches = [stage.make_cache() for stage in stages]

    def step(token_ids: list[int]) -> mx.array:
        activation = mx.array(token_ids, mx.int32)
        for stage, cache in zip(stages, caches, strict=True):
            activation = stage.forward(activation, [Part(cache, len(token_ids), num_logits=1)])
            mx.eval(activation)
        return activation[0]

    for chunk in CHUNKS:
        logits = step(chunk)
    tokens = []
    for _ in range(NUM_TOKENS):
        tokens.append(int(mx.argmax(logits)))
        logits = step([tokens[-1]])
    return tokens, logits


def run_plans(stages: Sequence[StageModel], plans: Sequence[StepPlan]) -> list[dict[SequenceId, Logits]]:
    """Logits of every step, by sequence."""
    engines = [
        StageEngine(model, is_first=stage == 0, is_last=stage == len(stages) - 1) for stage, model in enumerate(stages)
    ]
    logits = []
    for plan in plans:
        activation = None
        for engine in engines:
            output = engine.run_step(plan, activation)
            activation = output.activation
        logits.append(dict(output.logits))
    return logits


def alone(plans: Sequence[StepPlan], sequence_id: SequenceId) -> list[StepPlan]:
    """The plans with one sequence only."""
    return [
        StepPlan(
            plan.step,
            opened=tuple(one for one in plan.opened if one == sequence_id),
            sequences=tuple(part for part in plan.sequences if part.sequence_id == sequence_id),
        )
        for plan in plans
    ]


def collect(logits: Sequence[dict[SequenceId, Logits]], sequence_id: SequenceId) -> Logits:
    return np.concatenate([step[sequence_id] for step in logits if sequence_id in step])
