"""A token's forward gives the same bits however its sequence was cut into steps and whatever else they compute.

On it rests that an answer which is computed again, on other machines and in other steps, goes on with the very same tokens. (Not promised
of sliding windows, whose keys lie in another order after steps of several tokens.)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import INSTRUCTION_SETS, Setting, computing

from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import Part, SequenceCache, StageModel
from support.models import VOCAB_SIZE, make_tiny_model

TOKENS = [(index * 37 + index // 7) % VOCAB_SIZE for index in range(140)]
NUM_PROMPT = 90


@pytest.fixture(params=[(name, family) for name in INSTRUCTION_SETS for family in ("llama", "qwen3_moe")])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StageModel]:
    name, family = request.param
    config = make_tiny_model(family, tmp_path / family)
    with computing(Setting(name, 2)):
        layers = ShardRange(0, 1, 0, config["num_hidden_layers"])
        yield load_shard(tmp_path / family, layers, lambda part: None).model


def run_prompt(stage: StageModel, tokens: Sequence[int], chunk: int) -> SequenceCache:
    cache = stage.make_cache()
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        mx.eval(stage.forward(mx.array(piece, mx.int32), [Part(cache, len(piece), is_prompt=True)]))
    return cache


def run_answer(stage: StageModel, cache: SequenceCache, tokens: Sequence[int], chunk: int) -> np.ndarray:
    """Logits of every token."""
    pieces = [tokens[start : start + chunk] for start in range(0, len(tokens), chunk)]
    forwards = (stage.forward(mx.array(piece, mx.int32), [Part(cache, len(piece), len(piece))]) for piece in pieces)
    return np.concatenate([np.array(logits) for logits in forwards])


def test_steps_of_any_size_give_the_same_bits(stage: StageModel) -> None:
    prompt, answer = TOKENS[:NUM_PROMPT], TOKENS[NUM_PROMPT:]
    expected = run_answer(stage, run_prompt(stage, prompt, NUM_PROMPT), answer, 1)
    for prompt_chunk, answer_chunk in ((1, 1), (7, 3), (32, 16), (33, 17), (64, 50)):
        logits = run_answer(stage, run_prompt(stage, prompt, prompt_chunk), answer, answer_chunk)
        assert np.array_equal(logits, expected), (prompt_chunk, answer_chunk)


def test_company_in_a_step_changes_no_bit(stage: StageModel) -> None:
    prompt, answer = TOKENS[:NUM_PROMPT], TOKENS[NUM_PROMPT : NUM_PROMPT + 6]
    expected = run_answer(stage, run_prompt(stage, prompt, 40), answer, 1)
    one, other, long = run_prompt(stage, prompt, 40), run_prompt(stage, prompt[5:20], 15), stage.make_cache()
    for index, token in enumerate(answer):
        chunk = TOKENS[index * 11 : index * 11 + 11]
        parts = [Part(other, 1, 1), Part(one, 1, 1), Part(long, len(chunk), is_prompt=True)]
        logits = stage.forward(mx.array([7, token, *chunk], mx.int32), parts)
        assert np.array_equal(np.array(logits)[1], expected[index]), index
