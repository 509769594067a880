"""Layers of mlx.nn that hold a matrix: Linear, Embedding, and their quantized kinds."""

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import (
    FLOATS,
    Setting,
    assert_close,
    assert_same,
    computing,
    make_packed,
    make_values,
    multiply_exactly,
    on_every_instruction_set,
    on_every_setting,
    to_numpy,
)
from mlx import nn

EXACT, FAST = 3e-6, 2e-2


def make_linear(rows: int, columns: int, dtype: mx.Dtype = mx.float32, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=bias)
    layer.weight = make_values(rows, columns, dtype=dtype)
    if bias:
        layer.bias = make_values(rows, dtype=dtype)
    return layer


@on_every_setting
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_layers_agree_with_float64(dtype: mx.Dtype, has_bias: bool, precision: str, setting: Setting) -> None:
    shapes = [(1, 33), (7, 96), (37, 1), (96, 577), (577, 129), (48, 1536)]
    for num_inputs in (1, 2, 3, 8, 13, 33, 130):
        rows, columns = shapes[num_inputs % len(shapes)]
        layer = make_linear(rows, columns, dtype, bias=has_bias)
        x = make_values(1, num_inputs, columns, seed=5)
        expected, size = multiply_exactly(x, to_numpy(layer.weight))
        with computing(setting, precision):
            ours = layer(x)
            assert ours.dtype == mx.float32
            expected = expected + to_numpy(layer.bias) if has_bias else expected
            assert_close(ours, expected, EXACT, (num_inputs, rows, columns), size)


@on_every_instruction_set
def test_linear_layers_take_inputs_and_weights_that_do_not_lie_in_rows(setting: Setting) -> None:
    layer = make_linear(37, 64)
    inputs = [make_values(64, 5).T, make_values(10, 64)[::2], make_values(5, 128)[:, ::2], make_values(64)]
    weights = [make_values(64, 37).T, make_values(50, 64)[3:40], make_values(37, 128)[:, :64], make_values(74, 64)[::2]]
    for i, x in enumerate(inputs):
        for j, weight in enumerate(weights):
            layer.weight = weight
            expected, size = multiply_exactly(x, to_numpy(weight))
            with computing(setting):
                assert_close(layer(x), expected, EXACT, (i, j), size)


@on_every_instruction_set
def test_linear_layers_of_half_precision_inputs_are_stocks(setting: Setting) -> None:
    for dtype in (mx.float16, mx.bfloat16):
        layer = make_linear(37, 64, dtype, bias=True)
        x = make_values(5, 64, dtype=dtype)
        stock = layer(x)
        mx.eval(stock)
        with computing(setting):
            assert_same(layer(x), stock, dtype)


@on_every_setting
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", EXACT), ("fast", FAST)])
def test_quantized_linear_layers_agree_with_float64(
    precision: str, tolerance: float, bits: int, setting: Setting
) -> None:
    for dtype in FLOATS:
        w = make_packed(96, 192, bits=bits, group_size=64, dtype=dtype)
        layer = nn.QuantizedLinear(192, 96, bias=True, group_size=64, bits=bits)
        layer.weight, layer.scales, layer.biases = w.arrays
        layer.bias = make_values(96, dtype=dtype)
        for num_inputs in (1, 4, 40):
            x = make_values(1, num_inputs, 192)
            expected, _ = multiply_exactly(x, w.values)
            with computing(setting, precision):
                assert_close(layer(x), expected + to_numpy(layer.bias), tolerance, (dtype, num_inputs))


@on_every_instruction_set
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_embeddings_give_their_rows_exactly_and_multiply_as_linear(dtype: mx.Dtype, setting: Setting) -> None:
    layer = nn.Embedding(97, 64)
    layer.weight = make_values(97, 64, dtype=dtype)
    tokens = mx.array([[0, 96, 3], [3, 50, 0]])
    x = make_values(2, 3, 64)
    expected, _ = multiply_exactly(x, to_numpy(layer.weight))
    with computing(setting):
        rows, logits = layer(tokens), layer.as_linear(x)
        mx.eval(rows, logits)
    assert np.array_equal(to_numpy(rows), to_numpy(layer.weight)[np.array(tokens)])
    assert_close(logits, expected, EXACT)


@on_every_instruction_set
def test_embeddings_as_linear_of_half_precision_are_stocks(setting: Setting) -> None:
    layer = nn.Embedding(97, 64)
    layer.weight = make_values(97, 64, dtype=mx.float16)
    x = make_values(2, 64, dtype=mx.float16)
    stock = layer.as_linear(x)
    mx.eval(stock)
    with computing(setting):
        assert_same(layer.as_linear(x), stock)


@on_every_setting
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", EXACT), ("fast", FAST)])
def test_quantized_embeddings_look_up_and_multiply(
    precision: str, tolerance: float, bits: int, setting: Setting
) -> None:
    tokens = mx.array([[0, 96, 3, 3]])
    for dtype in FLOATS:
        w = make_packed(97, 128, bits=bits, group_size=32, dtype=dtype)
        layer = nn.QuantizedEmbedding(97, 128, group_size=32, bits=bits)
        layer.weight, layer.scales, layer.biases = w.arrays
        with computing(setting, precision):
            assert_close(layer(tokens), w.values[np.array(tokens)], 1e-6, dtype)
            assert layer(tokens).dtype == mx.float32
            for num_inputs in (1, 20):
                x = make_values(1, num_inputs, 128)
                assert_close(layer.as_linear(x), multiply_exactly(x, w.values)[0], tolerance, dtype)


@on_every_instruction_set
def test_quantized_layers_of_other_modes_are_stocks(setting: Setting) -> None:
    mx.random.seed(2)
    layer = nn.QuantizedEmbedding(96, 64, mode="mxfp4")
    linear = nn.QuantizedLinear(64, 96, bias=False, mode="mxfp4")
    tokens, x = mx.array([5, 9]), make_values(2, 64)
    stock = [layer(tokens), layer.as_linear(x), linear(x)]
    mx.eval(stock)
    with computing(setting):
        for ours, expected in zip([layer(tokens), layer.as_linear(x), linear(x)], stock, strict=True):
            assert_same(ours, expected)
