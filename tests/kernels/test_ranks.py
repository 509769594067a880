"""Layers whose halves are divided over ranks: joined, they sum over a real ring, and give what the whole layers give."""

import json
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels.comparing import INSTRUCTION_SETS, Setting, computing
from kernels.rank_programs import BEST, NUM_LAYERS, load, make_values, run_answers
from mlx_lm.utils import load_model, quantize_model, save_model

from support.models import make_tiny_model
from support.ranks import run_ranks

TOLERANCE = 1e-5
Found = list[dict[str, np.ndarray]]


def make_model(folder: Path, bits: int, **changed: Any) -> None:
    config = make_tiny_model("llama", folder / "model", **changed)
    if bits:
        model, _ = load_model(folder / "model")
        packed, config = quantize_model(model, config, 32, bits)
        save_model(folder / "model", packed)
        (folder / "model" / "config.json").write_text(json.dumps(config))


def run(size: int, folder: Path, program: str, *arguments: object) -> Found:
    run_ranks(size, folder, "kernels.rank_programs", program, folder, *arguments)
    return [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(size)]


def assert_right(ranks: Found, whole: dict[str, np.ndarray]) -> None:
    for rank in ranks:
        for name, expected in whole.items():
            assert np.array_equal(rank[name], ranks[0][name]), name
            error = np.abs(rank[name] - expected).max() / np.abs(expected).max()
            assert error <= TOLERANCE, f"{name}: {error:.3g}"


@pytest.mark.parametrize(
    "setting", [Setting(name, 1) for name in INSTRUCTION_SETS] + [Setting(BEST.instruction_set, 2)], ids=str
)
@pytest.mark.parametrize("bits", [0, 4])
def test_two_ranks_give_what_the_whole_layers_give(bits: int, setting: Setting, tmp_path: Path) -> None:
    make_model(tmp_path, bits)
    with computing(setting):
        whole = run_answers(load(str(tmp_path), None))
    ranks = run(2, tmp_path, "write_answers", setting.instruction_set, setting.num_threads)
    assert_right(ranks, whole)
    assert all(rank["layers"].tolist() == [True] * NUM_LAYERS and rank["runs"] == 1 for rank in ranks)


def test_biases_are_added_once(tmp_path: Path) -> None:
    make_model(tmp_path, 0, attention_bias=True, mlp_bias=True)
    with computing(BEST):
        whole = run_answers(load(str(tmp_path), None))
    ranks = run(2, tmp_path, "write_answers", BEST.instruction_set, BEST.num_threads)
    assert_right(ranks, whole)
    assert all(rank["layers"].all() for rank in ranks)


def test_company_in_a_step_changes_no_bit_of_what_three_ranks_sum(tmp_path: Path) -> None:
    make_model(tmp_path, 4, num_attention_heads=6, num_key_value_heads=3)
    with computing(BEST):
        whole = run_answers(load(str(tmp_path), None))
    ranks = run(3, tmp_path, "write_answers", BEST.instruction_set, BEST.num_threads)
    assert_right(ranks, whole)
    assert all(rank["layers"].all() for rank in ranks)
    assert np.array_equal(ranks[0]["alone"], ranks[0]["beside"])


def test_ranks_join_nothing_where_one_of_them_has_no_kernels(tmp_path: Path) -> None:
    make_model(tmp_path, 4)
    with computing(BEST):
        whole = run_answers(load(str(tmp_path), None))
    ranks = run(2, tmp_path, "write_answers_where_one_rank_has_no_kernels")
    assert not any(rank["layers"].any() for rank in ranks)
    assert_right(ranks, whole)


def test_ranks_leave_alone_the_layer_that_one_of_them_cannot_join(tmp_path: Path) -> None:
    make_model(tmp_path, 4)
    with computing(BEST):
        whole = run_answers(load(str(tmp_path), None))
    ranks = run(2, tmp_path, "write_answers_where_one_rank_cannot_join_a_layer")
    assert [rank["layers"].tolist() for rank in ranks] == [[True, False, *[True] * (NUM_LAYERS - 2)]] * 2
    assert_right(ranks, whole)


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_added_up_in_the_order_of_ranks(size: int, tmp_path: Path) -> None:
    expected = reduce(np.add, [make_values(rank) for rank in range(size)])
    for rank in run(size, tmp_path, "write_sums"):
        assert np.array_equal(rank["all"], expected)
        assert np.array_equal(rank["one"], expected[17:18])
