"""Products in which every row takes its own matrix: the mixtures of experts of mlx-lm's switch layers."""

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import (
    FLOATS,
    Setting,
    assert_close,
    assert_stock,
    computing,
    make_packed,
    make_values,
    on_every_instruction_set,
    on_every_setting,
    to_numpy,
)
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

EXACT, FAST, LAYERS = 3e-6, 2e-2, 2e-5
NUM_EXPERTS = 6


def make_experts(*shape: int, seed: int = 3) -> mx.array:
    """Which expert each place takes."""
    return mx.array(np.random.default_rng(seed).integers(0, NUM_EXPERTS, shape).astype(np.uint32))


def multiply_each(x: mx.array, values: np.ndarray, experts: mx.array) -> np.ndarray:
    """x [..., 1, columns] broadcast to experts [...], times each one's matrix: [..., 1, rows] in float64."""
    wide, chosen = to_numpy(x), np.array(experts)
    wide = np.broadcast_to(wide, (*np.broadcast_shapes(wide.shape[:-2], chosen.shape), *wide.shape[-2:]))
    return np.einsum("...ik,...nk->...in", wide, values[np.broadcast_to(chosen, wide.shape[:-2])])


def make_shapes() -> dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """Shapes of input and experts, and whether the experts are sorted, as SwitchGLU has them."""
    return {
        "one token": ((1, 1, 1, 1, 192), (1, 1, 2), False),
        "one token after its experts": ((1, 1, 2, 1, 192), (1, 1, 2), False),
        "three sequences": ((3, 1, 1, 1, 192), (3, 1, 2), False),
        "short prompt": ((1, 13, 1, 1, 192), (1, 13, 4), False),
        "sorted prompt": ((80, 1, 192), (80,), True),
        "long sorted prompt": ((300, 1, 192), (300,), True),
        "single place": ((1, 1, 192), (1,), False),
    }


@on_every_setting
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", EXACT), ("fast", FAST)])
def test_gathered_products_agree_with_float64(precision: str, tolerance: float, bits: int, setting: Setting) -> None:
    for index, (name, (x_shape, experts_shape, is_sorted)) in enumerate(make_shapes().items()):
        group_size, dtype = (32, 64)[index % 2], FLOATS[index % 3]
        w = make_packed(NUM_EXPERTS, 37, 192, bits=bits, group_size=group_size, dtype=dtype)
        x, experts = make_values(*x_shape), make_experts(*experts_shape)
        experts = mx.sort(experts) if is_sorted else experts
        with computing(setting, precision):
            ours = mx.gather_qmm(
                x, *w.arrays, rhs_indices=experts, transpose=True, sorted_indices=is_sorted, mode="affine", **w.packing
            )
            assert_close(ours, multiply_each(x, w.values, experts), tolerance, name)


@on_every_setting
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gathered_products_of_plain_matrices_agree_with_float64(dtype: mx.Dtype, setting: Setting) -> None:
    weight = make_values(NUM_EXPERTS, 37, 192, dtype=dtype)
    for name, (x_shape, experts_shape, is_sorted) in make_shapes().items():
        x, experts = make_values(*x_shape), make_experts(*experts_shape)
        experts = mx.sort(experts) if is_sorted else experts
        with computing(setting):
            ours = mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=is_sorted)
            assert_close(ours, multiply_each(x, to_numpy(weight), experts), EXACT, name)


@on_every_instruction_set
@pytest.mark.parametrize("num_tokens", [1, 5, 13, 100])
@pytest.mark.parametrize("kind", ["plain", "4 bits", "8 bits", "with bias"])
def test_switch_layers_give_what_stock_gives(kind: str, num_tokens: int, setting: Setting) -> None:
    mx.random.seed(4)
    layer = SwitchGLU(128, 96, NUM_EXPERTS, bias=kind == "with bias")
    if kind == "with bias":
        layer.gate_proj.bias = make_values(NUM_EXPERTS, 96)
    if kind[0].isdigit():
        for name in ("gate_proj", "up_proj", "down_proj"):
            layer[name] = layer[name].to_quantized(group_size=32, bits=int(kind[0]))
    mx.eval(layer.parameters())
    x, experts = make_values(2, num_tokens, 128), make_experts(2, num_tokens, 3)
    stock = layer(x, experts)
    mx.eval(stock)
    with computing(setting):
        assert_close(layer(x, experts), stock, LAYERS)


@on_every_instruction_set
def test_switch_mlp_gives_what_stock_gives(setting: Setting) -> None:
    mx.random.seed(4)
    layer = SwitchMLP(128, 96, NUM_EXPERTS)
    mx.eval(layer.parameters())
    for num_tokens in (1, 90):
        x, experts = make_values(1, num_tokens, 128), make_experts(1, num_tokens, 2)
        stock = layer(x, experts)
        mx.eval(stock)
        with computing(setting):
            assert_close(layer(x, experts), stock, LAYERS, num_tokens)


@on_every_instruction_set
def test_one_expert_may_take_all_rows(setting: Setting) -> None:
    w = make_packed(NUM_EXPERTS, 37, 192, bits=4, group_size=64)
    x = make_values(130, 1, 192)
    for expert in (0, NUM_EXPERTS - 1):
        experts = mx.full((130,), expert, dtype=mx.uint32)
        with computing(setting):
            for is_sorted in (False, True):
                ours = mx.gather_qmm(x, *w.arrays, rhs_indices=experts, sorted_indices=is_sorted, **w.packing)
                assert_close(ours, multiply_each(x, w.values, experts), EXACT, expert)


@on_every_instruction_set
def test_inputs_and_experts_need_not_lie_in_rows(setting: Setting) -> None:
    w = make_packed(2 * NUM_EXPERTS, 37, 192, bits=4, group_size=64)
    half = w.take_rows(NUM_EXPERTS, 2 * NUM_EXPERTS)
    x = make_values(192, 1, 40).transpose(2, 1, 0)
    experts = make_experts(80)[::2]
    kinds = (experts, experts.astype(mx.int32), experts.astype(mx.uint8), experts.astype(mx.int64))
    for chosen in kinds:
        with computing(setting):
            ours = mx.gather_qmm(x, *half.arrays, rhs_indices=chosen, **half.packing)
            assert_close(ours, multiply_each(x, half.values, experts), EXACT, chosen.dtype)


@on_every_instruction_set
def test_gathered_products_that_are_not_covered_are_stocks(setting: Setting) -> None:
    w = make_packed(NUM_EXPERTS, 64, 64, bits=4, group_size=64)
    half = [array.astype(mx.float16) for array in w.arrays[1:]]
    mxfp4 = mx.quantize(make_values(NUM_EXPERTS, 64, 64), mode="mxfp4")
    plain = make_values(NUM_EXPERTS, 64, 64)
    x, many, experts = make_values(5, 1, 64), make_values(5, 3, 64), make_experts(5)
    calls = {
        "several rows": lambda: mx.gather_qmm(many, *w.arrays, rhs_indices=experts, **w.packing),
        "not transposed": lambda: mx.gather_qmm(x, *w.arrays, rhs_indices=experts, transpose=False, **w.packing),
        "indices of inputs": lambda: mx.gather_qmm(x, *w.arrays, experts % 5, experts, **w.packing),
        "no indices": lambda: mx.gather_qmm(make_values(NUM_EXPERTS, 1, 64), *w.arrays, **w.packing),
        "float16": lambda: mx.gather_qmm(x.astype(mx.float16), w.codes, *half, rhs_indices=experts, **w.packing),
        "mxfp4": lambda: mx.gather_qmm(x, *mxfp4, rhs_indices=experts, mode="mxfp4", group_size=32, bits=4),
        "plain, several rows": lambda: mx.gather_mm(many, plain, rhs_indices=experts),
        "plain, indices of inputs": lambda: mx.gather_mm(x, plain, experts % 5, experts),
        "plain, no indices": lambda: mx.gather_mm(make_values(NUM_EXPERTS, 1, 64), plain),
    }
    assert_stock(calls, setting)


@on_every_instruction_set
def test_plain_matrices_may_lie_in_any_order(setting: Setting) -> None:
    """gather_mm takes [experts, columns, rows]: as it lies in memory, or another array's transposition."""
    x, experts = make_values(7, 1, 64), make_experts(7)
    as_it_lies = make_values(NUM_EXPERTS, 64, 37)
    expected = multiply_each(x, to_numpy(as_it_lies).swapaxes(-1, -2), experts)
    with computing(setting):
        assert_close(mx.gather_mm(x, as_it_lies, rhs_indices=experts), expected, EXACT)
        assert_close(mx.gather_mm(x, as_it_lies, None, experts), expected, EXACT)


@on_every_instruction_set
def test_arguments_may_be_given_in_every_way_of_mlx(setting: Setting) -> None:
    w = make_packed(NUM_EXPERTS, 37, 64, bits=4, group_size=64)
    x, experts = make_values(5, 1, 64), make_experts(5)
    expected = multiply_each(x, w.values, experts)
    with computing(setting):
        for result in (
            mx.gather_qmm(x, *w.arrays, None, experts, True, 64, 4, "affine"),
            mx.gather_qmm(x, *w.arrays, None, experts, True, 64, 4, "affine", None),
            mx.gather_qmm(x, *w.arrays, rhs_indices=experts, global_scale=None),
            mx.gather_qmm(x, *w.arrays, rhs_indices=experts, stream=mx.cpu),
        ):
            assert_close(result, expected, EXACT)


@on_every_instruction_set
def test_quantized_switch_layer_gives_what_a_plain_one_of_its_values_gives(setting: Setting) -> None:
    mx.random.seed(4)
    packed = QuantizedSwitchLinear(64, 37, NUM_EXPERTS, bias=True, group_size=32, bits=4)
    plain = SwitchLinear(64, 37, NUM_EXPERTS, bias=True)
    plain.weight = mx.dequantize(packed.weight, packed.scales, packed.biases, group_size=32, bits=4)
    packed.bias = plain.bias = make_values(NUM_EXPERTS, 37)
    x, experts = make_values(1, 9, 1, 1, 64), make_experts(1, 9, 2)
    with computing(setting):
        assert_close(packed(x, experts), plain(x, experts), LAYERS)
