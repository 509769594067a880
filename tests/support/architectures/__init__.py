"""Tiny configs of every text family that mlx-lm can run here, by the name of its module (which is its model_type too).

Each has every kind of layer that the family mixes, in a pattern that differs over the layers, so that stages of different sizes see
different ones; windows are shorter than the tests' prompts; heads, KV heads and experts divide by two. models.py makes models of them.
tests/unit/worker/model/test_tiny_architectures.py runs them all, and says what to add when mlx-lm has a family more.
"""

from typing import Any

from support.architectures.attention import ATTENTION
from support.architectures.experts import EXPERTS
from support.architectures.latent import LATENT
from support.architectures.parts import VOCAB_SIZE
from support.architectures.recurrent import RECURRENT
from support.architectures.windows import WINDOWS
from support.architectures.wrappers import WRAPPERS

__all__ = ["NOT_RUN", "TINY_CONFIGS", "VOCAB_SIZE"]

TINY_CONFIGS: dict[str, dict[str, Any]] = {**ATTENTION, **WINDOWS, **EXPERTS, **LATENT, **RECURRENT, **WRAPPERS}

# Families without a config, and why.
NOT_RUN = {
    "bitnet": "its BitLinear layers are a Metal kernel: they cannot run on a CPU",
    "muse_spark": "its attention norms and rotates by a Metal kernel: it cannot run on a CPU",
    "olmo": "its module ends the process where the package ai2-olmo is missing",
}
