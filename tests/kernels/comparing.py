"""How the kernels' results are compared with stock MLX's, or with float64 arithmetic, over instruction sets and threads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

takeover = pytest.importorskip(
    "paceline_kernels.takeover", reason="the kernels' compiled part was not built for this MLX", exc_type=ImportError
)
if mx.default_device() != mx.cpu:
    pytest.skip("MLX computes on a GPU here", allow_module_level=True)

from paceline_kernels import _native  # noqa: E402  (only where it was built)

taken_over = takeover.taken_over
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True, slots=True)
class Setting:
    """What computes: one of this processor's instruction sets, on a number of threads."""

    instruction_set: str
    num_threads: int

    def __str__(self) -> str:
        return f"{self.instruction_set}-{self.num_threads}"


INSTRUCTION_SETS = tuple(_native.list_instruction_sets())
SETTINGS = tuple(Setting(name, num_threads) for name in INSTRUCTION_SETS for num_threads in (1, 2))
on_every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)
on_every_instruction_set = pytest.mark.parametrize("setting", SETTINGS[1::2], ids=str)


@contextmanager
def computing(setting: Setting, precision: str = "exact") -> Iterator[None]:
    """The kernels in use with a setting; what was before is put back."""
    before = Setting(_native.instruction_set(), _native.get_threads())
    _choose(setting)
    try:
        with taken_over(precision):
            yield
    finally:
        _choose(before)


def _choose(setting: Setting) -> None:
    _native.use_instruction_set(setting.instruction_set)
    _native.set_threads(setting.num_threads)


def assert_close(ours: mx.array, expected: Any, tolerance: float, case: object = "", size: float = 0.0) -> None:
    """Shapes agree, and no difference is more than tolerance of the largest value (or of `size`, if that is more)."""
    found, wanted = to_numpy(ours), to_numpy(expected)
    assert found.shape == wanted.shape, case
    if wanted.size == 0:
        return
    assert np.isfinite(found).all(), case
    error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), size, 1e-30)
    assert error <= tolerance, f"{case}: {error:.3g} > {tolerance}"


def assert_same(ours: mx.array, stock: mx.array, case: object = "") -> None:
    """Shape, type and every bit agree (NaN equals NaN)."""
    assert (ours.shape, ours.dtype) == (stock.shape, stock.dtype), case
    assert np.array_equal(to_numpy(ours), to_numpy(stock), equal_nan=True), case


def assert_stock(calls: Mapping[str, Callable[[], mx.array]], setting: Setting, precision: str = "exact") -> None:
    """What the kernels do not cover is stock MLX's, to the last bit."""
    for name, call in calls.items():
        stock = call()
        mx.eval(stock)
        with computing(setting, precision):
            assert_same(call(), stock, name)


def to_numpy(values: Any) -> np.ndarray:
    """In float64."""
    if not isinstance(values, mx.array):
        return np.asarray(values, dtype=np.float64)
    widened = values.astype(mx.float32) if mx.issubdtype(values.dtype, mx.floating) else values
    return np.array(widened).astype(np.float64)


@lru_cache(maxsize=512)
def make_values(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Normal random values, the same for every call."""
    values = mx.array(np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)).astype(dtype)
    mx.eval(values)
    return values


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantized matrix [rows, columns], or a stack of them, and the values that it stands for in float64."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int
    values: np.ndarray

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.codes, self.scales, self.biases

    @property
    def packing(self) -> dict[str, int]:
        return {"group_size": self.group_size, "bits": self.bits}

    def take_rows(self, first: int, last: int) -> "Packed":
        """Views of rows [first, last)."""
        arrays = [array[first:last] for array in self.arrays]
        mx.eval(arrays)
        return Packed(*arrays, self.bits, self.group_size, self.values[first:last])


@lru_cache(maxsize=512)
def make_packed(*shape: int, bits: int, group_size: int, dtype: mx.Dtype = mx.float32) -> Packed:
    """A random matrix, quantized; scales and biases of a type."""
    codes, scales, biases = mx.quantize(make_values(*shape, seed=bits), group_size=group_size, bits=bits)
    scales, biases = scales.astype(dtype), biases.astype(dtype)
    wide = (codes, scales.astype(mx.float32), biases.astype(mx.float32))
    values = to_numpy(mx.dequantize(*wide, group_size=group_size, bits=bits))
    mx.eval(codes, scales, biases)
    return Packed(codes, scales, biases, bits, group_size, values)


def multiply_exactly(x: Any, values: np.ndarray) -> tuple[np.ndarray, float]:
    """x . values^T in float64, and what a typical result's size is, were there more of them."""
    wide = to_numpy(x)
    product = wide @ values.swapaxes(-1, -2)
    size = np.linalg.norm(wide, axis=-1).max() * np.linalg.norm(values, axis=-1).max() / np.sqrt(values.shape[-1])
    return product, float(size)


def find_outcome(call: Callable[[], mx.array]) -> tuple[Any, ...]:
    """What a call does: ("raises", the error's class), or ("gives", shape, type)."""
    try:
        result = call()
        mx.eval(result)
    except Exception as error:  # the test is which one
        return "raises", type(error)
    return "gives", tuple(result.shape), result.dtype
