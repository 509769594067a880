"""Model truth: a model that is divided over ranks gives the whole model's logits, within rounding, and its tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline_worker.weights.tensor_sizes import DIVIDED
from support.answering import Answer, Asked, answer, read_answers, to_json
from support.models import make_tiny_model
from support.ranks import run_ranks

TOLERANCE = 1e-4


def ask_ranks(size: int, folder: Path, asked: Asked) -> list[Answer]:
    run_ranks(size, folder, "support.answering", "write_answer", to_json(asked), folder)
    return read_answers(size, folder)


def check(
    family: str, size: int, folder: Path, *, num_stages: int = 1, kv_bits: int = 0, **changed: Any
) -> list[Answer]:
    """Ask the whole model and so many ranks of as many stages the same; returns the ranks' answers."""
    make_tiny_model(family, folder / "model", **changed)
    return compare(size, folder, num_stages=num_stages, kv_bits=kv_bits)


def compare(size: int, folder: Path, *, num_stages: int = 1, kv_bits: int = 0) -> list[Answer]:
    asked = Asked(str(folder / "model"), kv_bits=kv_bits)
    whole = answer(asked)
    ranks = ask_ranks(size, folder, replace(asked, num_stages=num_stages))
    for rank in ranks:
        assert rank.tokens == whole.tokens
        assert np.abs(rank.logits - whole.logits).max() <= TOLERANCE * np.abs(whole.logits).max()
        assert np.array_equal(rank.logits, ranks[0].logits)
    return ranks


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_two_ranks_give_the_whole_models_answers(family: str, tmp_path: Path) -> None:
    check(family, 2, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", sorted(DIVIDED))
def test_two_ranks_of_every_family_give_the_whole_models_answers(family: str, tmp_path: Path) -> None:
    check(family, 2, tmp_path)


@pytest.mark.parametrize("heads", [(4, 2), (8, 8), (6, 3)])
def test_ranks_may_differ_in_size(heads: tuple[int, int], tmp_path: Path) -> None:
    num_heads, num_kv_heads = heads
    size = 4 if num_heads == 4 else 3 if num_heads == 8 else 2
    check("llama", size, tmp_path, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads)
