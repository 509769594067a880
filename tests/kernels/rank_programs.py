"""What a rank of a group does in test_ranks.py; each writes what it found to rank-<rank>.npz in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from kernels.comparing import INSTRUCTION_SETS, Setting, computing
from mlx import nn

from paceline_kernels import speed_up_layers
from paceline_kernels.ranks import sum_over_ranks
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import Part, StageModel

Group = mx.distributed.Group
NUM_LAYERS, VOCAB_SIZE, NUM_PROMPT = 4, 320, 40
TOKENS = [(index * 37 + index // 7) % VOCAB_SIZE for index in range(NUM_PROMPT + 6)]
BEST = Setting(INSTRUCTION_SETS[0], 1)


class OtherRoPE(nn.RoPE):
    """Computes what nn.RoPE computes, but is a position embedding that joined layers do not know."""


def make_values(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal((50, 33), dtype=np.float32)


def load(folder: str, group: Group | None) -> StageModel:
    return load_shard(Path(folder) / "model", ShardRange(0, 1, 0, NUM_LAYERS), lambda part: None, group=group).model


def forward(stage: StageModel, tokens: Sequence[int], parts: Sequence[Part]) -> np.ndarray:
    return np.array(stage.forward(mx.array(list(tokens), mx.int32), parts))


def run_answers(stage: StageModel) -> dict[str, np.ndarray]:
    """Logits of a prompt's tokens in chunks; of an answer's, one by one, alone and beside others."""
    prompt, answer = TOKENS[:NUM_PROMPT], TOKENS[NUM_PROMPT:]
    alone, beside, other, long = (stage.make_cache() for _ in range(4))
    chunks = [prompt[:23], prompt[23:]]
    shown = [forward(stage, chunk, [Part(alone, len(chunk), len(chunk))]) for chunk in chunks]
    for cache, tokens in ((beside, prompt[:23]), (beside, prompt[23:]), (other, prompt[5:20])):
        forward(stage, tokens, [Part(cache, len(tokens), len(tokens))])
    own = [forward(stage, [token], [Part(alone, 1, 1)]) for token in answer]
    joined = []
    for index, token in enumerate(answer):
        chunk = TOKENS[index * 7 : index * 7 + 7]
        parts = [Part(other, 1, 1), Part(beside, 1, 1), Part(long, len(chunk), is_prompt=True)]
        joined.append(forward(stage, [7, token, *chunk], parts)[1:2])
    return {"prompt": np.concatenate(shown), "alone": np.concatenate(own), "beside": np.concatenate(joined)}


def list_layers(stage: StageModel) -> list[nn.Module]:
    assert stage._cut_model is not None
    return list(stage._cut_model.trunk["layers"])


def describe_layers(stage: StageModel) -> list[bool]:
    """Of every layer: whether it is joined, its MLP included, for several sequences too."""
    halves = [vars(layer).get("joined") for layer in list_layers(stage)]
    return [half is not None and half.mlp is not None and half.takes_segments for half in halves]


def count_runs(stage: StageModel) -> int:
    places = [vars(layer).get("place") for layer in list_layers(stage)]
    return len({id(place.run) for place in places if place is not None})


def write(group: Group, folder: str, **found: Any) -> None:
    np.savez(Path(folder) / f"rank-{group.rank()}.npz", **found)


def write_answers(group: Group, folder: str, instruction_set: str, num_threads: str) -> None:
    with computing(Setting(instruction_set, int(num_threads))):
        stage = load(folder, group)
        write(group, folder, layers=describe_layers(stage), runs=count_runs(stage), **run_answers(stage))


def write_answers_where_one_rank_has_no_kernels(group: Group, folder: str) -> None:
    if group.rank() == 1:
        stage = load(folder, group)
        write(group, folder, layers=describe_layers(stage), **run_answers(stage))
        return
    with computing(BEST):
        stage = load(folder, group)
        write(group, folder, layers=describe_layers(stage), **run_answers(stage))


def write_answers_where_one_rank_cannot_join_a_layer(group: Group, folder: str) -> None:
    stage = load(folder, group)
    if group.rank() == 1:
        list_layers(stage)[1].self_attn.rope.__class__ = OtherRoPE
    with computing(BEST):
        speed_up_layers(stage._cut_model.trunk, stage._cut_model, mx.array([[0, 1, 2]]))
        write(group, folder, layers=describe_layers(stage), **run_answers(stage))


def write_sums(group: Group, folder: str) -> None:
    x = mx.array(make_values(group.rank()))
    write(group, folder, all=np.array(sum_over_ranks(x, group)), one=np.array(sum_over_ranks(x[17:18], group)))
