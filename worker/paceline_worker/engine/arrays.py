"""MLX arrays <-> tensors on the wire: one copy each way, bfloat16 through its bits (numpy has no such type)."""

from typing import Any

import mlx.core as mx
import numpy as np

from paceline_services.domain.steps import DType, Tensor, TensorHeader

_TO_MLX = {DType.FLOAT32: mx.float32, DType.FLOAT16: mx.float16, DType.BFLOAT16: mx.bfloat16, DType.INT32: mx.int32}
_FROM_MLX = {str(mlx_type): dtype for dtype, mlx_type in _TO_MLX.items()}
_NUMPY_BITS = {DType.FLOAT32: "<f4", DType.FLOAT16: "<f2", DType.BFLOAT16: "<u2", DType.INT32: "<i4"}


def to_tensor(array: mx.array) -> Tensor:
    """The array's content; evaluates it. Raises KeyError for a type that never travels."""
    dtype = _FROM_MLX[str(array.dtype)]
    return Tensor(TensorHeader(dtype, tuple(array.shape)), _raw_bytes(array))


def _raw_bytes(array: mx.array) -> bytes:
    whole: Any = mx.contiguous(array)
    return bytes(memoryview(whole))


def from_tensor(tensor: Tensor) -> mx.array:
    """The tensor as an MLX array of the same shape and type."""
    dtype = tensor.header.dtype
    bits = mx.array(np.frombuffer(tensor.content, _NUMPY_BITS[dtype]).reshape(tensor.header.shape))
    return bits.view(mx.bfloat16) if dtype is DType.BFLOAT16 else bits
