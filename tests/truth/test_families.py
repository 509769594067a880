"""Model truth: for every family, any division into stages gives the whole model's tokens, and its logits to the last bit."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import Part
from support.models import FAMILIES, VOCAB_SIZE, make_tiny_model
from support.pipelines import split_layers

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(21)]
CHUNKS = (PROMPT[:13], PROMPT[13:20], PROMPT[20:])
NUM_TOKENS = 24


def run_whole(folder: Path) -> tuple[list[int], mx.array]:
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


def run_stages(folder: Path, num_layers: int, num_stages: int) -> tuple[list[int], mx.array]:
    """The same through stages, each with its own layers and caches."""
    ranges = split_layers(num_layers, num_stages)
    stages = [
        load_shard(folder, ShardRange(stage, num_stages, start, end), lambda part: None).model
        for stage, (start, end) in enumerate(ranges)
    ]
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


@pytest.mark.parametrize("family", FAMILIES)
def test_any_division_gives_the_whole_models_tokens(family: str, tmp_path: Path) -> None:
    config = make_tiny_model(family, tmp_path / family)
    whole_tokens, whole_logits = run_whole(tmp_path / family)
    for num_stages in (1, 2, 3, config["num_hidden_layers"]):
        tokens, logits = run_stages(tmp_path / family, config["num_hidden_layers"], num_stages)
        assert tokens == whole_tokens, f"{num_stages} stages"
        assert float(mx.abs(logits - whole_logits).max()) == 0.0, f"{num_stages} stages"
