"""A stage that takes over what another one held is the stage that was read from disk: same logits to the last bit, fewer bytes read."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest

from paceline_kernels import use_kernels
from paceline_kernels.takeover import find_kernels
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import LoadedShard, load_shard
from paceline_worker.model.stage import Part
from support.models import FAMILIES, VOCAB_SIZE, make_tiny_model

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(21)]
NUM_TOKENS = 8


def load(folder: Path, shard: ShardRange, held: LoadedShard | None = None) -> LoadedShard:
    return load_shard(folder, shard, lambda part: None, held=held)


def run(stages: list[LoadedShard]) -> mx.array:
    """The logits [tokens, vocab] of a prompt's last token and of the greedy tokens after it."""
    caches = [stage.model.make_cache() for stage in stages]
    rows, tokens = [], PROMPT
    for _ in range(NUM_TOKENS):
        activation = mx.array(tokens, mx.int32)
        for stage, cache in zip(stages, caches, strict=True):
            activation = stage.model.forward(activation, [Part(cache, len(tokens), num_logits=1)])
            mx.eval(activation)
        rows.append(activation[0])
        tokens = [int(mx.argmax(activation[0]))]
    return mx.stack(rows)


def divide(num_layers: int, *bounds: int) -> list[ShardRange]:
    edges = (0, *bounds, num_layers)
    return [ShardRange(stage, len(edges) - 1, edges[stage], edges[stage + 1]) for stage in range(len(edges) - 1)]


def move(folder: Path, before: list[LoadedShard], shards: list[ShardRange]) -> list[LoadedShard]:
    """The first stage from the first, the last from the last; those between them, and a first one beside no other, are read anew."""
    held: list[LoadedShard | None] = [None] * len(shards)
    held[-1] = before[-1]
    if len(shards) > 1 and len(before) > 1:
        held[0] = before[0]
    moved = [load(folder, shard, one) for shard, one in zip(shards, held, strict=True)]
    fresh = [load(folder, shard) for shard in shards]
    for one, other, old in zip(moved, fresh, held, strict=True):
        assert one.loaded_bytes == other.loaded_bytes
        assert (one.read_bytes < other.read_bytes) == (old is not None), (one.shard, old and old.shard)
    assert mx.array_equal(run(moved), run(fresh))
    return moved


@contextmanager
def with_kernels() -> Iterator[None]:
    """Paceline's own kernels where they were built, with joined layers."""
    if not use_kernels(num_threads=1).in_use:
        pytest.skip("the kernels are not in use on this machine")
    try:
        yield
    finally:
        if (kernels := find_kernels()) is not None:
            kernels.give_back()


@pytest.mark.parametrize("family", FAMILIES)
def test_moved_stages_give_the_logits_of_stages_read_anew(family: str, tmp_path: Path) -> None:
    check_moves(tmp_path / family, family, mx.float32)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_half_precision_is_taken_over_as_it_was_converted(family: str, tmp_path: Path) -> None:
    check_moves(tmp_path / family, family, mx.float16)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_layers_are_joined_anew_after_a_move(family: str, tmp_path: Path) -> None:
    with with_kernels():
        check_moves(tmp_path / family, family, mx.float16)


def check_moves(folder: Path, family: str, dtype: mx.Dtype) -> None:
    num_layers = make_tiny_model(family, folder, dtype=dtype)["num_hidden_layers"]
    stages = [load(folder, shard) for shard in divide(num_layers, 1)]
    expected = run(stages)
    for bounds in ((2, 3), (), (2,)):
        stages = move(folder, stages, divide(num_layers, *bounds))
        assert mx.array_equal(run(stages), expected), f"divided at {bounds}"


def test_same_part_of_a_model_is_not_read_again(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m")
    first = load(tmp_path / "m", ShardRange(0, 2, 0, 2))
    again = load(tmp_path / "m", ShardRange(0, 3, 0, 2), first)
    assert (again.read_bytes, again.loaded_bytes) == (0, first.loaded_bytes)
    assert again.model is first.model


def test_what_a_moved_stage_holds_no_more_is_freed(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", hidden_size=256, num_hidden_layers=8)
    gc.collect()
    before = mx.get_active_memory()
    stage = load(tmp_path / "m", ShardRange(0, 2, 0, 6))
    stage = load(tmp_path / "m", ShardRange(1, 2, 5, 8), stage)
    gc.collect()
    held = mx.get_active_memory() - before
    assert stage.loaded_bytes <= held < 1.1 * stage.loaded_bytes
