"""Fast CPU kernels for MLX: one call, and this process computes with them.

use_kernels takes over the functions of mlx that a language model spends its time in; whatever they do not cover goes to stock MLX as
before. A process that loads a model may then join layers' steps (speed_up_layers). Importing this package does not import mlx, so that
a BLAS can be preloaded first (preload_fallback).
"""

from paceline_kernels.loading import (
    KernelReport,
    Loops,
    are_kernels_built,
    are_kernels_in_use,
    check_kernels,
    preload_fallback,
    speed_up_layers,
    use_kernels,
    using_loops,
)

__all__ = [
    "KernelReport",
    "Loops",
    "are_kernels_built",
    "are_kernels_in_use",
    "check_kernels",
    "preload_fallback",
    "speed_up_layers",
    "use_kernels",
    "using_loops",
]
