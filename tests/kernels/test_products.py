"""Products with quantized matrices: mx.quantized_matmul."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.comparing import (
    FLOATS,
    SETTINGS,
    Packed,
    Setting,
    assert_close,
    assert_same,
    assert_stock,
    computing,
    make_packed,
    make_values,
    multiply_exactly,
    on_every_instruction_set,
    on_every_setting,
)
from mlx import nn

from paceline_kernels import Loops, using_loops

EXACT, FAST = 3e-6, 2e-2
BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)
NUM_INPUTS = (1, 2, 3, 5, 8, 13, 33, 130)
ROWS = (1, 7, 37, 96, 577)
GROUPS = (1, 3, 9, 4)
WIDE_GROUPS = (*GROUPS, 18)  # 18 of 32 columns: the demo model's


def multiply(x: mx.array, w: Packed) -> mx.array:
    return mx.quantized_matmul(x, *w.arrays, transpose=True, **w.packing)


def check(x: mx.array, w: Packed, tolerance: float, case: object) -> None:
    expected, size = multiply_exactly(x, w.values)
    ours = multiply(x, w)
    assert ours.dtype == mx.float32
    assert_close(ours, expected, tolerance, case, size)


def list_cases(bits: int) -> list[tuple[int, Packed]]:
    """Numbers of inputs with matrices, so that all values of each and most pairs occur."""
    cases = []
    for i, group_size in enumerate(GROUP_SIZES):
        for j, dtype in enumerate(FLOATS):
            for k, num_inputs in enumerate(NUM_INPUTS):
                rows = ROWS[(i + 2 * j + k + bits) % len(ROWS)]
                columns = group_size * GROUPS[(i + j + k + bits) % len(GROUPS)]
                cases.append((num_inputs, make_packed(rows, columns, bits=bits, group_size=group_size, dtype=dtype)))
    return cases


@on_every_setting
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", EXACT), ("fast", FAST)])
def test_products_agree_with_float64(precision: str, tolerance: float, bits: int, setting: Setting) -> None:
    with computing(setting, precision):
        for num_inputs, w in list_cases(bits):
            x = make_values(num_inputs, w.values.shape[-1], seed=5)
            check(x, w, tolerance, (num_inputs, w.values.shape, w.group_size, w.scales.dtype))


@on_every_instruction_set
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_wide_matrices_agree_with_float64(precision: str, setting: Setting) -> None:
    with computing(setting, precision):
        for bits, num_inputs in ((4, 1), (4, 40), (8, 1), (8, 40), (3, 2)):
            w = make_packed(576, 1536, bits=bits, group_size=64, dtype=mx.float16)
            check(make_values(num_inputs, 1536), w, EXACT if precision == "exact" else FAST, (bits, num_inputs))
        for rows, columns, num_inputs in ((24, 8192, 2), (24, 8192, 20), (5000, 64, 1), (5000, 64, 17)):
            w = make_packed(rows, columns, bits=4, group_size=32, dtype=mx.bfloat16)
            check(
                make_values(num_inputs, columns),
                w,
                EXACT if precision == "exact" else FAST,
                (rows, columns, num_inputs),
            )


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    setting=st.sampled_from(SETTINGS),
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from(GROUP_SIZES),
    dtype=st.sampled_from(FLOATS),
    leading=st.lists(st.integers(1, 7), max_size=3),
    rows=st.integers(1, 150),
    groups=st.integers(1, 7),
    is_fast=st.booleans(),
)
def test_products_of_any_shape_agree_with_float64(
    setting: Setting,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    leading: list[int],
    rows: int,
    groups: int,
    is_fast: bool,
) -> None:
    w = make_packed(rows, groups * group_size, bits=bits, group_size=group_size, dtype=dtype)
    x = make_values(*leading, groups * group_size)
    with computing(setting, "fast" if is_fast else "exact"):
        check(x, w, FAST if is_fast else EXACT, leading)


@on_every_setting
@pytest.mark.parametrize("bits", [4, 8])
def test_leading_dimensions_are_kept(bits: int, setting: Setting) -> None:
    w = make_packed(37, 192, bits=bits, group_size=64)
    with computing(setting):
        for leading in ((), (1,), (1, 5), (2, 3), (3, 1, 4), (1, 33), (2, 130), (1, 1, 1, 2)):
            check(make_values(*leading, 192), w, EXACT, leading)


@on_every_instruction_set
@pytest.mark.parametrize("num_inputs", [1, 3, 33])
def test_inputs_need_not_lie_in_rows(num_inputs: int, setting: Setting) -> None:
    w = make_packed(37, 192, bits=4, group_size=64)
    views = {
        "transposed": make_values(192, num_inputs).T,
        "every third row": make_values(num_inputs * 3, 192)[::3],
        "every second column": make_values(num_inputs, 384)[:, ::2],
        "backwards": make_values(num_inputs, 192)[:, ::-1],
        "one row broadcast": mx.broadcast_to(make_values(192), (num_inputs, 192)),
        "one column broadcast": mx.broadcast_to(make_values(num_inputs, 1), (num_inputs, 192)),
        "middle of a buffer": make_values(1, 50, 192)[:, 4 : 4 + num_inputs],
        "heads swapped": make_values(1, 3, num_inputs, 64).transpose(0, 2, 1, 3).reshape(1, num_inputs, 192),
    }
    for name, view in views.items():
        for is_evaluated in (True, False):
            if is_evaluated:
                mx.eval(view)
            with computing(setting):
                # Where all inputs are alike, what scales and biases contribute cancels: a digit is lost.
                tolerance = 1e-5 if name == "one column broadcast" else EXACT
                check(view if is_evaluated else view + 0, w, tolerance, (name, is_evaluated))


@on_every_instruction_set
@pytest.mark.parametrize("num_inputs", [1, 33])
@pytest.mark.parametrize("bits", BITS)
def test_matrices_may_be_parts_of_bigger_arrays(bits: int, num_inputs: int, setting: Setting) -> None:
    whole = make_packed(64, 192, bits=bits, group_size=64, dtype=mx.float16)
    part = whole.take_rows(3, 40)
    columns = Packed(
        whole.codes[:, : 128 * bits // 32], whole.scales[:, :2], whole.biases[:, :2], bits, 64, whole.values[:, :128]
    )
    every_second = Packed(whole.codes[::2], whole.scales[::2], whole.biases[::2], bits, 64, whole.values[::2])
    with computing(setting):
        check(make_values(num_inputs, 192), part, EXACT, "rows")
        check(make_values(num_inputs, 128), columns, EXACT, "columns")
        check(make_values(num_inputs, 192), every_second, EXACT, "every second row")


@on_every_instruction_set
def test_nothing_need_be_evaluated_before(setting: Setting) -> None:
    values = make_values(37, 192)
    with computing(setting):
        codes, scales, biases = mx.quantize(values * 2, group_size=64, bits=4)
        ours = mx.quantized_matmul(make_values(5, 192) + 1, codes, scales, biases, group_size=64, bits=4)
        chained = mx.quantized_matmul(ours @ mx.ones((37, 192)), codes, scales, biases, group_size=64, bits=4)
        mx.eval(chained)
    stock = mx.quantized_matmul(make_values(5, 192) + 1, codes, scales, biases, group_size=64, bits=4)
    assert_close(ours, stock, 1e-5)
    expected = mx.quantized_matmul(stock @ mx.ones((37, 192)), codes, scales, biases, group_size=64, bits=4)
    assert_close(chained, expected, 1e-5)


@on_every_instruction_set
def test_zero_and_equal_weights_are_exact(setting: Setting) -> None:
    x = make_values(3, 128)
    with computing(setting):
        for value in (0.0, 1.0, -2.5):
            packed = mx.quantize(mx.full((40, 128), value), group_size=64, bits=4)
            ours = mx.quantized_matmul(x, *packed, group_size=64, bits=4)
            expected, _ = multiply_exactly(x, np.full((40, 128), value))
            assert_close(ours, expected, EXACT, value, size=10.0)


@on_every_instruction_set
def test_columns_of_very_different_size_lose_nothing_in_exact(setting: Setting) -> None:
    w = make_packed(37, 192, bits=4, group_size=64)
    x = make_values(4, 192) * mx.repeat(mx.array([1e-4, 1.0, 1e3]), 64)
    with computing(setting):
        check(x, w, EXACT, "three sizes")


@on_every_setting
def test_one_row_gives_the_same_alone_and_among_many(setting: Setting) -> None:
    """Within the rounding of float32: batches must not change what a sequence gets."""
    w = make_packed(96, 256, bits=4, group_size=64)
    x = make_values(40, 256)
    with computing(setting):
        together = multiply(x, w)
        for row in (0, 17, 39):
            assert_close(multiply(x[row : row + 1], w), together[row : row + 1], 2e-6, row)


def count_few(setting: Setting, bits: int, precision: str) -> int:
    """The most inputs that are computed as each alone would be (most_few of the library); `bits` 0: not packed."""
    is_wide = setting.instruction_set in ("avx512-vnni", "avx512", "portable")
    is_int8 = precision == "fast" and setting.instruction_set == "avx512-vnni" and bits in (4, 8)
    return 32 if is_wide and bits in (0, 4, 8) and not is_int8 else 16


def check_inputs_alone(
    product: Callable[[mx.array], mx.array], x: mx.array, setting: Setting, precision: str, case: object
) -> None:
    """Among others, on any number of threads, an input gives to the last bit what it gives alone on one thread."""
    few = x.shape[0]
    with computing(Setting(setting.instruction_set, 1), precision):
        alone = mx.concatenate([product(x[row : row + 1]) for row in range(few)])
        mx.eval(alone)
    with computing(setting, precision):
        for num_inputs in range(1, few + 1):
            assert_same(product(x[few - num_inputs :]), alone[few - num_inputs :], (case, num_inputs))


@on_every_setting
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("bits", BITS)
def test_an_input_gives_the_same_bits_alone_and_among_others(bits: int, precision: str, setting: Setting) -> None:
    for i, group_size in enumerate(GROUP_SIZES):
        for j, dtype in enumerate(FLOATS):
            rows, columns = ROWS[1 + (i + j + bits) % 4], group_size * WIDE_GROUPS[(i + 2 * j + bits) % 5]
            w = make_packed(rows, columns, bits=bits, group_size=group_size, dtype=dtype)
            x = make_values(count_few(setting, bits, precision), columns, seed=7)
            check_inputs_alone(partial(multiply, w=w), x, setting, precision, (rows, columns, dtype))


@on_every_setting
@pytest.mark.parametrize("loops", [Loops.FEW, Loops.MANY], ids=str)
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("bits", (0, 4, 5))
def test_loops_that_were_chosen_give_the_same_bits_for_any_number(
    bits: int, precision: str, loops: Loops, setting: Setting
) -> None:
    packed = partial(multiply, w=make_packed(98, 1088, bits=bits or 4, group_size=64))
    product = packed if bits else nn.Linear(1088, 98, bias=False)
    x = make_values(70, 1088, seed=7)
    with computing(Setting(setting.instruction_set, 1), precision), using_loops(loops):
        alone = mx.concatenate([product(x[row : row + 1]) for row in range(70)])
        mx.eval(alone)
    with computing(setting, precision), using_loops(loops):
        for num_inputs in (2, 5, 12, 13, 33, 70):
            assert_same(product(x[:num_inputs]), alone[:num_inputs], num_inputs)


@on_every_setting
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_an_input_of_a_plain_matrix_gives_the_same_bits_alone_and_among_others(
    dtype: mx.Dtype, setting: Setting
) -> None:
    for rows, columns in ((1, 33), (7, 96), (37, 1), (98, 577), (48, 1536)):
        layer = nn.Linear(columns, rows, bias=False)
        layer.weight = make_values(rows, columns, dtype=dtype)
        x = make_values(count_few(setting, 0, "exact"), columns, seed=7)
        check_inputs_alone(layer, x, setting, "exact", (rows, columns))


@on_every_instruction_set
def test_results_repeat_to_the_last_bit(setting: Setting) -> None:
    w = make_packed(577, 576, bits=4, group_size=64)
    for num_inputs in (1, 33):
        with computing(setting):
            results = [multiply(make_values(num_inputs, 576), w) for _ in range(3)]
            mx.eval(results)
        with computing(Setting(setting.instruction_set, 1)):
            results.append(multiply(make_values(num_inputs, 576), w))
            mx.eval(results)
        for result in results[1:]:
            assert_same(result, results[0], num_inputs)


def test_results_are_fresh_memory_and_inputs_stay() -> None:
    w = make_packed(64, 64, bits=4, group_size=64)
    x = mx.array(make_values(2, 64))
    before = np.array(x)
    with computing(SETTINGS[0]):
        first = multiply(x, w)
        mx.eval(first)
        kept = np.array(first)
        mx.eval(multiply(x * 3, w), multiply(first, w))
    assert np.array_equal(np.array(x), before)
    assert np.array_equal(np.array(first), kept)


# -- what the kernels do not cover is stock MLX's --


@on_every_instruction_set
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_products_that_are_not_covered_are_stocks(precision: str, setting: Setting) -> None:
    w = make_packed(64, 128, bits=4, group_size=64)
    half = make_packed(64, 128, bits=4, group_size=64, dtype=mx.float16)
    batch = mx.quantize(make_values(2, 40, 128), group_size=64, bits=4)
    mxfp4 = mx.quantize(make_values(64, 128), mode="mxfp4")
    mxfp8 = mx.quantize(make_values(64, 128), mode="mxfp8")
    nvfp4 = mx.quantize(make_values(64, 128), mode="nvfp4")
    x = make_values(3, 128)
    calls = {
        "not transposed": lambda: mx.quantized_matmul(make_values(3, 64), *w.arrays, transpose=False, **w.packing),
        "float16 input": lambda: mx.quantized_matmul(x.astype(mx.float16), *half.arrays, **w.packing),
        "bfloat16 input": lambda: mx.quantized_matmul(x.astype(mx.bfloat16), *half.arrays, **w.packing),
        "a batch of matrices": lambda: mx.quantized_matmul(make_values(2, 3, 128), *batch, group_size=64, bits=4),
        "mxfp4": lambda: mx.quantized_matmul(x, *mxfp4, mode="mxfp4", group_size=32, bits=4),
        "mxfp8": lambda: mx.quantized_matmul(x, *mxfp8, mode="mxfp8", group_size=32, bits=8),
        "nvfp4": lambda: mx.quantized_matmul(x, *nvfp4, mode="nvfp4", group_size=16, bits=4),
    }
    assert_stock(calls, setting, precision)


@on_every_instruction_set
def test_arguments_may_be_given_in_every_way_of_mlx(setting: Setting) -> None:
    w = make_packed(64, 128, bits=4, group_size=64)
    x = make_values(3, 128)
    expected, _ = multiply_exactly(x, w.values)
    with computing(setting):
        for result in (
            mx.quantized_matmul(x, *w.arrays),
            mx.quantized_matmul(x, *w.arrays, True, 64, 4, "affine"),
            mx.quantized_matmul(x, w.codes, scales=w.scales, biases=w.biases, bits=4),
            mx.quantized_matmul(x, *w.arrays, group_size=None, bits=None),
            mx.quantized_matmul(x, *w.arrays, stream=None),
            mx.quantized_matmul(x, *w.arrays, stream=mx.cpu),
            mx.quantized_matmul(x, *w.arrays, stream=mx.new_stream(mx.cpu)),
        ):
            assert_close(result, expected, EXACT)
