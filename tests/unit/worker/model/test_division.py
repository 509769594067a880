"""A divided model's parts: together they are the whole model's tensors, and of the files no more is read than they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from paceline_worker.model.tensor.division import divide
from paceline_worker.model.tensor.files import TensorFiles
from paceline_worker.model.tensor.linears import SummedLinear
from support.models import make_tiny_model


@dataclass(frozen=True, slots=True)
class Seat:
    """Stands for a group that nothing is computed with."""

    own_rank: int
    num_ranks: int

    def rank(self) -> int:
        return self.own_rank

    def size(self) -> int:
        return self.num_ranks


def load_part(folder: Path, rank: int, size: int) -> tuple[Any, int]:
    """A rank's model with its parts read, and how many bytes these have in the files."""
    files = TensorFiles(folder)
    model: Any = load_model(folder, lazy=True, get_model_classes=files.get_classes)[0]
    seat: Any = Seat(rank, size)
    divide(model, files, seat)
    num_bytes = files.count_read_bytes(model)
    files.read_into(model)
    mx.eval(model.parameters())
    return model, num_bytes


def load_parts(folder: Path, size: int) -> list[Any]:
    return [load_part(folder, rank, size)[0] for rank in range(size)]


def put_together(models: Sequence[Any], whole: Any, name: str) -> mx.array:
    """A layer's parameter of all ranks, along the axis that was divided."""
    parts = [
        dict(tree_flatten(model.parameters()))[name]
        for model in models
        if name in dict(tree_flatten(model.parameters()))
    ]
    expected = dict(tree_flatten(whole.parameters()))[name.replace(".part.", ".")]
    if len(parts) == 1 or parts[0].shape == expected.shape:
        return parts[0]
    axis = next(axis for axis in range(expected.ndim) if parts[0].shape[axis] != expected.shape[axis])
    return mx.concatenate(parts, axis)


@pytest.mark.parametrize(("family", "size"), [("llama", 2), ("qwen2", 2), ("qwen3_moe", 2), ("gpt_oss", 2)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_ranks_parts_are_the_whole(family: str, size: int, dtype: mx.Dtype, tmp_path: Path) -> None:
    make_tiny_model(family, tmp_path / "m", dtype=dtype)
    whole = load_model(tmp_path / "m")[0]
    models = load_parts(tmp_path / "m", size)
    halved = 2 if family == "gpt_oss" else 1  # each rank adds its share of the bias of experts
    for name, _ in tree_flatten(models[0].parameters()):
        together = put_together(models, whole, name)
        expected = dict(tree_flatten(whole.parameters()))[name.replace(".part.", ".")]
        factor = halved if name.endswith("experts.down_proj.bias") else 1
        assert together.dtype == expected.dtype
        assert mx.array_equal(together * factor, expected), name


def test_heads_go_to_one_rank_each(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", num_attention_heads=6, num_key_value_heads=3)
    models = load_parts(tmp_path / "m", 2)
    attentions = [model.model.layers[0].self_attn for model in models]
    assert [(attention.n_heads, attention.n_kv_heads) for attention in attentions] == [(4, 2), (2, 1)]
    assert [attention.k_proj.weight.shape[0] for attention in attentions] == [32, 16]
    assert [attention.o_proj.weight.shape[1] for attention in attentions] == [64, 32]


def test_ranks_that_outnumber_heads_of_keys_hold_the_same_ones(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", num_attention_heads=4, num_key_value_heads=2)
    keys = [model.model.layers[1].self_attn.k_proj.weight for model in load_parts(tmp_path / "m", 4)]
    assert mx.array_equal(keys[0], keys[1])
    assert mx.array_equal(keys[2], keys[3])
    assert not mx.array_equal(keys[1], keys[2])


def test_divided_outputs_stay_plain_layers_and_divided_inputs_are_summed(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m")
    layer = load_parts(tmp_path / "m", 2)[1].model.layers[0]
    assert {type(layer.self_attn[name]) for name in ("q_proj", "k_proj", "v_proj")} == {nn.Linear}
    assert {type(layer.mlp[name]) for name in ("gate_proj", "up_proj")} == {nn.Linear}
    assert type(layer.self_attn.o_proj) is type(layer.mlp.down_proj) is SummedLinear


def test_only_rank_0_adds_the_bias_of_a_sum(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", mlp_bias=True, attention_bias=True)
    has_bias = ["bias" in model.model.layers[0].mlp.down_proj for model in load_parts(tmp_path / "m", 2)]
    assert has_bias == [True, False]


def test_a_vocabulary_need_not_divide(tmp_path: Path) -> None:
    make_tiny_model("qwen2", tmp_path / "m", vocab_size=322, tie_word_embeddings=False)
    models = load_parts(tmp_path / "m", 4)
    assert [model.model.embed_tokens.part.weight.shape[0] for model in models] == [81, 81, 81, 79]
    assert [model.lm_head.part.weight.shape[0] for model in models] == [81, 81, 81, 79]


def test_bytes_of_parts_are_counted_and_of_what_is_made_anew_all(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", tie_word_embeddings=False)
    model, num_bytes = load_part(tmp_path / "m", 0, 2)
    assert num_bytes == sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))
    make_tiny_model("deepseek_v3", tmp_path / "latent")
    model, num_bytes = load_part(tmp_path / "latent", 0, 2)
    assert num_bytes > sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m", hidden_size=512, intermediate_size=8192)
    files = TensorFiles(tmp_path / "m")
    before = mx.get_active_memory()
    model: Any = load_model(tmp_path / "m", lazy=True, get_model_classes=files.get_classes)[0]
    seat: Any = Seat(1, 2)
    divide(model, files, seat)
    assert mx.get_active_memory() - before < 1e6
