"""Frequencies of rotary position embeddings, computed as MLX computes them, so that angles agree to the last bit."""

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np


def find_frequencies(dims: int, base: float | None, periods: mx.array | None) -> mx.array:
    """Angle per position and pair, [dims / 2] float32, evaluated: from the base, or 1 / periods where a model has its own."""
    if periods is None:
        assert base is not None
        return from_base(dims, float(base))
    frequencies = 1.0 / periods.astype(mx.float32)
    mx.eval(frequencies)
    return frequencies


@lru_cache(maxsize=64)
def from_base(dims: int, base: float) -> mx.array:
    half = dims // 2
    step = np.float32(math.log(np.float32(base))) / np.float32(half)  # MLX divides in float32
    frequencies = mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * mx.array(float(step), mx.float32))
    mx.eval(frequencies)
    return frequencies
