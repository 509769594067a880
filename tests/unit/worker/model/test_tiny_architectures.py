"""Tiny configs: there is one for every family of the installed mlx-lm, and mlx-lm's own whole model runs with it."""

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from support.architectures import NOT_RUN, TINY_CONFIGS
from support.models import VOCAB_SIZE, make_tiny_model

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(21)]
CHUNKS = (PROMPT[:13], PROMPT[13:])
NUM_TOKENS = 4
# Families whose loading changes what the file holds: the head's rows become unit vectors.
CHANGED_BY_LOADING = {"baichuan_m1": {"lm_head.weight"}}


def list_families() -> Iterator[str]:
    """Modules of mlx-lm that define or import both Model and ModelArgs; read, not run, as one of them ends the process."""
    for folder in mlx_lm.models.__path__:
        for module in pkgutil.iter_modules([folder]):
            body = ast.parse((Path(folder) / f"{module.name}.py").read_text()).body
            names = {node.name for node in body if isinstance(node, ast.ClassDef)}
            names |= {
                alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names
            }
            if {"Model", "ModelArgs"} <= names:
                yield module.name


def test_every_family_has_a_tiny_config_or_a_reason_against_one() -> None:
    families = set(list_families())
    missing = families - TINY_CONFIGS.keys() - NOT_RUN.keys()
    assert not missing, (
        f"mlx-lm has families that tests/support/architectures does not know: {', '.join(sorted(missing))}. "
        "Add a tiny config of each to the file of its kind, or the reason why it cannot run to NOT_RUN."
    )
    gone = (TINY_CONFIGS.keys() | NOT_RUN.keys()) - families
    assert not gone, f"mlx-lm no longer has these families; remove them from tests/support/architectures: {gone}"
    assert not TINY_CONFIGS.keys() & NOT_RUN.keys()


@pytest.mark.parametrize("family", TINY_CONFIGS)
def test_tiny_model_loads_as_saved_and_runs(family: str, tmp_path: Path) -> None:
    make_tiny_model(family, tmp_path / "m")
    saved = mx.load(str(tmp_path / "m" / "model.safetensors"))
    assert isinstance(saved, dict)
    model, _ = load_model(tmp_path / "m")
    loaded = dict(tree_flatten(model.parameters()))
    assert loaded.keys() == saved.keys()
    changed = {name for name in saved if not mx.array_equal(saved[name], loaded[name])}
    assert changed == CHANGED_BY_LOADING.get(family, set())

    cache = make_prompt_cache(model)
    logits = [model(mx.array([chunk]), cache=cache)[0] for chunk in CHUNKS]
    for _ in range(NUM_TOKENS):
        logits.append(model(mx.argmax(logits[-1][-1:], axis=-1)[None], cache=cache)[0])
    # Some forbid tokens of their real vocabulary, beyond this one.
    positions = mx.concatenate(logits)[:, :VOCAB_SIZE].astype(mx.float32)
    assert positions.shape == (len(PROMPT) + NUM_TOKENS, VOCAB_SIZE)
    assert mx.all(mx.isfinite(positions))
    assert len(set(mx.argmax(positions, axis=-1).tolist())) >= len(PROMPT) // 2
