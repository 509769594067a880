"""The checks before the kernels are used: built for this MLX, right, and faster than stock."""

import importlib.metadata
import statistics
import time
from collections.abc import Callable

import mlx.core as mx

TOLERANCE = 1e-4
ROUNDS = 3


def find_fault(num_threads: int) -> str:
    """Why the kernels must not be used here; empty when they can be."""
    installed = importlib.metadata.version("mlx")
    try:
        from paceline_kernels import _native
    except ImportError as error:
        return f"the kernels do not load with MLX {installed} ({str(error).splitlines()[0]}): run `make kernels`"
    if _native.built_for_mlx != installed:
        return f"the kernels were built for MLX {_native.built_for_mlx}, {installed} is installed: run `make kernels`"
    if mx.default_device() != mx.cpu:
        return "MLX computes on a GPU here"
    _native.set_threads(num_threads)
    if fault := find_wrong_product():
        return fault
    if is_stock_faster():
        return "this MLX is as fast by itself"
    return ""


def find_wrong_product() -> str:
    """A product that differs from stock MLX's; empty when all agree."""
    for bits, num_inputs in ((4, 1), (4, 20), (8, 1), (8, 20)):
        ours, stock = make_products(96, 192, bits, num_inputs)
        difference = mx.max(mx.abs(ours() - stock())) / mx.max(mx.abs(stock()))
        if not bool((difference <= TOLERANCE).item()):
            return f"a self-test failed: a {bits}-bit product of {num_inputs} inputs is off by {difference.item():g} of its size"
    return ""


def is_stock_faster() -> bool:
    """Whether stock MLX decodes and prefills faster than the kernels; measured in turn, a few milliseconds each."""
    return all(compare_times(*make_products(1024, 1024, 4, num_inputs)) > 1 for num_inputs in (1, 20))


def compare_times(one: Callable[[], mx.array], other: Callable[[], mx.array]) -> float:
    """How many times as long one takes as the other: the median of some rounds, the first of which does not count."""
    time_once(one), time_once(other)
    return statistics.median(time_once(one) / time_once(other) for _ in range(ROUNDS))


def time_once(compute: Callable[[], mx.array]) -> float:
    started = time.perf_counter()
    mx.eval(compute())
    return time.perf_counter() - started


def make_products(
    rows: int, columns: int, bits: int, num_inputs: int
) -> tuple[Callable[[], mx.array], Callable[[], mx.array]]:
    """One product with random weights, by the kernels and by stock MLX."""
    from paceline_kernels import _native
    from paceline_kernels.takeover import find_stock

    stock = find_stock(mx, "quantized_matmul")
    key = mx.random.key(rows + bits)
    x = mx.random.normal((num_inputs, columns), key=key)
    packed = mx.quantize(mx.random.normal((rows, columns), key=key), group_size=64, bits=bits)
    mx.eval(x, packed)
    return (
        lambda: _native.multiply(x, *packed, group_size=64, bits=bits, fast=False),
        lambda: stock(x, *packed, transpose=True, group_size=64, bits=bits),
    )
