"""Watching a forward finds what a family calls its parts, when it uses them, and which caches a layer is given."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from paceline_services.errors import ConfigurationError
from paceline_worker.model.anatomy import Anatomy, NotInOrderError, Phase, examine, find_layers
from paceline_worker.model.families import find_handoff
from support.models import make_tiny_model


def watch(family: str, folder: Path, **changed: object) -> Anatomy:
    make_tiny_model(family, folder / family, **changed)
    model, _ = load_model(folder / family, lazy=True)
    trunk, layers = find_layers(model)
    return examine(model, find_handoff(trunk)(trunk, 0, len(layers)))


def list_phases(anatomy: Anatomy) -> dict[str, Phase]:
    return {part.key: part.phase for part in anatomy.parts}


@pytest.mark.parametrize(
    ("family", "before", "after"),
    [
        ("qwen2", ["embed_tokens"], ["norm", "lm_head"]),
        ("gpt2", ["wte", "wpe"], ["ln_f"]),
        ("gpt_neox", ["embed_in"], ["final_layer_norm", "embed_out"]),
        ("plamo", ["embed_tokens"], ["norm", "lm_head"]),
        ("talkie", ["embed"], ["lm_head_gain", "lm_head"]),
        ("qwen3_vl", ["embed_tokens"], ["norm", "lm_head"]),
    ],
)
def test_parts_are_found_under_any_name(family: str, before: list[str], after: list[str], tmp_path: Path) -> None:
    phases = list_phases(watch(family, tmp_path))
    assert [key for key, phase in phases.items() if phase & Phase.BEFORE] == before
    assert [key for key, phase in phases.items() if phase == Phase.AFTER] == after


def test_tied_embedding_is_used_before_and_after(tmp_path: Path) -> None:
    phases = list_phases(watch("llama", tmp_path))
    assert phases == {"embed_tokens": Phase.BEFORE | Phase.AFTER, "norm": Phase.AFTER}


def test_a_layer_may_be_given_none_of_the_caches(tmp_path: Path) -> None:
    given = watch("nemotron_h", tmp_path).given
    held = [index for layer in given for index in layer]
    assert held == list(range(len(held)))
    assert frozenset() in given


def test_a_cache_may_be_no_layers(tmp_path: Path) -> None:
    anatomy = watch("longcat_flash_ngram", tmp_path)
    assert 0 not in anatomy.list_caches(range(len(anatomy.layers)))


@pytest.mark.parametrize("family", ["nanbeige", "iquestloopcoder"])
def test_layers_that_are_not_called_one_after_another_are_noticed(family: str, tmp_path: Path) -> None:
    with pytest.raises(NotInOrderError):
        watch(family, tmp_path)


def test_model_is_as_it_was_afterwards(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "m")
    model, _ = load_model(tmp_path / "m", lazy=True)
    modules = [model, *find_layers(model)]
    kinds = [type(module) for module in modules]
    expected = model(mx.array([[1, 2, 3]]))
    trunk, layers = find_layers(model)
    examine(model, find_handoff(trunk)(trunk, 0, len(layers)))
    assert [type(module) for module in modules] == kinds
    assert mx.array_equal(model(mx.array([[1, 2, 3]])), expected)


def test_model_without_layers_is_refused() -> None:
    from mlx import nn

    with pytest.raises(ConfigurationError, match="no list of layers"):
        find_layers(nn.Linear(2, 2))
