"""What a model says: greedy tokens and logits of chunked prompts, alone and several at once, whole or as one rank of a group.

Of a group, every rank calls these with the same arguments; all of them get all logits.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import LoadedShard, load_shard
from paceline_worker.model.stage import Part, SequenceCache
from support.pipelines import split_layers

CHUNKS = (13, 7, 1)
NUM_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """How a model is divided into stages, and run. chunks: how many tokens of each prompt go into one forward."""

    folder: str
    num_stages: int = 1
    kv_bits: int = 0
    vocab_size: int = 320
    chunks: tuple[int, ...] = CHUNKS
    num_tokens: int = NUM_TOKENS


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens [sequence][index], greedy. logits [step, sequence, vocab], the prompt's last ones first."""

    tokens: list[list[int]]
    logits: np.ndarray
    loaded_bytes: int
    read_bytes: int


def answer(asked: Asked, group: mx.distributed.Group | None = None) -> Answer:
    """Two sequences: their prompts chunk by chunk, each alone, then token by token, both at once."""
    stages = _load(asked, group)
    prompts = [[(index * factor) % asked.vocab_size for index in range(sum(asked.chunks))] for factor in (37, 53)]
    caches = [[stage.model.make_cache() for stage in stages] for _ in prompts]
    last = []
    for prompt, cache in zip(prompts, caches, strict=True):
        ends = list(accumulate(asked.chunks))
        for start, end in zip([0, *ends], ends, strict=False):
            row = _forward(stages, [prompt[start:end]], [cache])
        last.append(row)
    logits = [mx.concatenate(last)]
    tokens: list[list[int]] = []
    for _ in range(asked.num_tokens):
        tokens.append([int(token) for token in mx.argmax(logits[-1], axis=-1).tolist()])
        logits.append(_forward(stages, [[token] for token in tokens[-1]], caches))
    return Answer(
        [list(column) for column in zip(*tokens, strict=True)],
        np.array(mx.stack(logits).astype(mx.float32)),
        sum(stage.loaded_bytes for stage in stages),
        sum(stage.read_bytes for stage in stages),
    )


def _load(asked: Asked, group: mx.distributed.Group | None) -> list[LoadedShard]:
    num_layers = len(load_model(Path(asked.folder), lazy=True)[0].layers)
    ranges = split_layers(num_layers, asked.num_stages)
    return [
        load_shard(
            Path(asked.folder),
            ShardRange(stage, asked.num_stages, start, end),
            lambda part: None,
            kv_bits=asked.kv_bits,
            group=group,
        )
        for stage, (start, end) in enumerate(ranges)
    ]


def _forward(
    stages: Sequence[LoadedShard], rows: Sequence[list[int]], caches: Sequence[Sequence[SequenceCache]]
) -> mx.array:
    """Logits [sequence, vocab] of each sequence's last row."""
    x = mx.array([token for row in rows for token in row], mx.int32)
    for index, stage in enumerate(stages):
        parts = [Part(own[index], len(row), num_logits=1) for own, row in zip(caches, rows, strict=True)]
        x = stage.model.forward(x, parts)
        mx.eval(x)
    return x


def write_answer(group: mx.distributed.Group, asked: str, folder: str) -> None:
    """Be one rank: asked is JSON of Asked; the answer goes to files that read_answers reads."""
    given = answer(Asked(**json.loads(asked)), group)
    path = Path(folder) / f"rank-{group.rank()}"
    np.save(path.with_suffix(".npy"), given.logits)
    facts = {"tokens": given.tokens, "loaded_bytes": given.loaded_bytes, "read_bytes": given.read_bytes}
    path.with_suffix(".json").write_text(json.dumps(facts))


def read_answers(size: int, folder: Path) -> list[Answer]:
    paths = [folder / f"rank-{rank}" for rank in range(size)]
    return [
        Answer(**json.loads(path.with_suffix(".json").read_text()), logits=np.load(path.with_suffix(".npy")))
        for path in paths
    ]


def to_json(asked: Asked) -> str:
    return json.dumps(asdict(asked))
