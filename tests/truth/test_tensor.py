"""Model truth: a model that is divided over ranks gives the whole model's logits, within rounding, and its tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.answering import Answer, Asked, answer, read_answers, to_json
from support.models import make_tiny_model
from support.ranks import run_ranks

TOLERANCE = 1e-4


def ask_ranks(size: int, folder: Path, asked: Asked) -> list[Answer]:
    run_ranks(size, folder, "support.answering", "write_answer", to_json(asked), folder)
    return read_answers(size, folder)


def check(family: str, size: int, folder: Path, *, num_stages: int = 1, kv_bits: int = 0, **changed: Any) -> list[Answer]:
    config = make_tiny_model(family, folder / "model", **changed)
    asked = Asked(str(folder / "model"), config["num_hidden_layers"], num_stages, kv_bits)
    whole = answer(Asked(asked.folder, asked.num_layers, kv_bits=kv_bits))
    ranks = ask_ranks(size, folder, asked)
    for rank in ranks:
        assert rank.tokens == whole.tokens
        assert np.abs(rank.logits - whole.logits).max() <= TOLERANCE * np.abs(whole.logits).max()
        assert np.array_equal(rank.logits, ranks[0].logits)
    return ranks


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_two_ranks_give_the_whole_models_answers(family: str, tmp_path: Path) -> None:
    check(family, 2, tmp_path)
