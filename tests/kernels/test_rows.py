"""What is computed row by row: norms, rotary position embeddings, SwiGLU."""

import sys

import mlx.core as mx
import mlx_lm.models.activations
import mlx_lm.models.llama
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.comparing import (
    FLOATS,
    SETTINGS,
    Setting,
    assert_close,
    assert_same,
    assert_stock,
    computing,
    make_values,
    on_every_instruction_set,
    to_numpy,
)
from mlx import nn
from mlx_lm.models.rope_utils import initialize_rope

NORMS, ROTATION, GATES = 2e-6, 2e-6, 2e-6
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 65, 127, 129, 576, 1025, 4097)


def norm_exactly(x: mx.array, weight: mx.array | None, eps: float) -> np.ndarray:
    wide = to_numpy(x)
    normed = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
    return normed if weight is None else normed * to_numpy(weight)


# -- norms --


@on_every_instruction_set
@pytest.mark.parametrize("weight_type", [None, *FLOATS], ids=str)
def test_rms_norm_agrees_with_float64(weight_type: mx.Dtype | None, setting: Setting) -> None:
    for length in LENGTHS:
        weight = None if weight_type is None else make_values(length, seed=2, dtype=weight_type)
        for leading in ((), (1,), (1, 3), (2, 3, 5)):
            x = make_values(*leading, length)
            with computing(setting):
                ours = mx.fast.rms_norm(x, weight, 1e-5)
                assert ours.dtype == mx.float32
                assert_close(ours, norm_exactly(x, weight, 1e-5), NORMS, (length, leading))


@on_every_instruction_set
def test_rms_norm_takes_inputs_that_do_not_lie_in_rows(setting: Setting) -> None:
    weight = make_values(48, seed=2)
    views = (
        make_values(48, 5).T,
        make_values(10, 48)[::2],
        make_values(5, 96)[:, ::2],
        make_values(2, 4, 3, 48).swapaxes(1, 2),
    )
    for index, x in enumerate(views):
        with computing(setting):
            assert_close(mx.fast.rms_norm(x, weight, 1e-5), norm_exactly(x, weight, 1e-5), NORMS, index)
            every_second = make_values(96, seed=2)[::2]
            assert_close(mx.fast.rms_norm(x, every_second, 1e-5), norm_exactly(x, every_second, 1e-5), NORMS, index)


@on_every_instruction_set
def test_norms_of_many_rows_and_of_zeros_agree(setting: Setting) -> None:
    x = mx.concatenate(
        [make_values(600, 129), mx.zeros((2, 129)), make_values(3, 129) * 1e-6, make_values(3, 129) * 1e6]
    )
    weight = make_values(129, seed=2)
    stock = mx.fast.layer_norm(x, weight, weight, 1e-5)
    mx.eval(x, stock)
    with computing(setting):
        assert_close(mx.fast.rms_norm(x, weight, 1e-5), norm_exactly(x, weight, 1e-5), NORMS)
        assert_close(mx.fast.layer_norm(x, weight, weight, 1e-5), stock, 1e-5)


@on_every_instruction_set
@pytest.mark.parametrize("parts", ["neither", "weight", "bias", "both"])
def test_layer_norm_agrees_with_float64(parts: str, setting: Setting) -> None:
    for length in LENGTHS[1:]:
        for dtype in FLOATS:
            weight = make_values(length, seed=2, dtype=dtype) if parts in {"weight", "both"} else None
            bias = make_values(length, seed=3, dtype=dtype) if parts in {"bias", "both"} else None
            x = make_values(2, 3, length) + 0.5
            wide = to_numpy(x)
            expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
            expected = expected * (1 if weight is None else to_numpy(weight)) + (0 if bias is None else to_numpy(bias))
            with computing(setting):
                assert_close(mx.fast.layer_norm(x, weight, bias, 1e-5), expected, 1e-5, (length, dtype))


@on_every_instruction_set
def test_norms_that_are_not_covered_are_stocks(setting: Setting) -> None:
    x, weight = make_values(3, 48, dtype=mx.float16), make_values(48, dtype=mx.float16)
    calls = {
        "float16": lambda: mx.fast.rms_norm(x, weight, 1e-5),
        "bfloat16": lambda: mx.fast.rms_norm(x.astype(mx.bfloat16), weight.astype(mx.bfloat16), 1e-5),
        "float16 layer norm": lambda: mx.fast.layer_norm(x, weight, weight, 1e-5),
        "no rows": lambda: mx.fast.rms_norm(mx.zeros((0, 48)), None, 1e-5),
        "no rows in layer norm": lambda: mx.fast.layer_norm(mx.zeros((0, 48)), None, None, 1e-5),
    }
    assert_stock(calls, setting)


@on_every_instruction_set
def test_norm_layers_give_what_stock_gives(setting: Setting) -> None:
    layers = [nn.RMSNorm(96, eps=1e-6), nn.LayerNorm(96), nn.LayerNorm(96, affine=False), nn.LayerNorm(96, bias=False)]
    x = make_values(2, 5, 96)
    stock = [layer(x) for layer in layers]
    mx.eval(stock)
    with computing(setting):
        for layer, expected in zip(layers, stock, strict=True):
            assert_close(layer(x), expected, 5e-6, layer)


# -- rotary position embeddings --


def rotate(x: mx.array, dims: int, **changed: object) -> mx.array:
    arguments = {"traditional": False, "base": 10000.0, "scale": 1.0, "offset": 0, **changed}
    return mx.fast.rope(x, dims, **arguments)


def check_rotation(setting: Setting, x: mx.array, dims: int, **changed: object) -> None:
    stock = rotate(x, dims, **changed)
    mx.eval(stock)
    with computing(setting):
        assert_close(rotate(x, dims, **changed), stock, ROTATION, (x.shape, dims, changed))


@on_every_instruction_set
@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "pairs"])
def test_rotation_agrees_with_stock(traditional: bool, setting: Setting) -> None:
    for batch, heads, tokens, head_dim, dims in (
        (1, 3, 1, 64, 64),
        (1, 9, 13, 64, 64),
        (2, 3, 5, 80, 80),
        (2, 1, 70, 96, 48),
        (1, 2, 3, 128, 2),
        (3, 4, 2, 20, 20),
        (1, 1, 1, 7, 6),
        (1, 2, 130, 256, 64),
    ):
        x = make_values(batch, heads, tokens, head_dim)
        for offset in (0, 1, 63, 64, 4000):
            check_rotation(setting, x, dims, traditional=traditional, offset=offset)


@on_every_instruction_set
@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "pairs"])
def test_rotation_knows_bases_scales_and_frequencies(traditional: bool, setting: Setting) -> None:
    x = make_values(2, 3, 9, 64)
    frequencies = mx.array(np.linspace(1.0, 9000.0, 16, dtype=np.float32))
    for base, scale in ((10000.0, 0.25), (500000.0, 1.0), (1000000.0, 8.0), (10.0, 1.0)):
        check_rotation(setting, x, 64, traditional=traditional, base=base, scale=scale, offset=17)
    for scale in (1.0, 0.5):
        given_frequencies = {"base": None, "freqs": frequencies, "scale": scale, "offset": 300}
        check_rotation(setting, x, 32, traditional=traditional, **given_frequencies)


def test_angles_agree_with_stock_far_into_a_sequence() -> None:
    """A frequency that is off by its last bit turns by whole degrees at position 100,000."""
    for dims in (2, 16, 18, 20, 34, 48, 64, 80, 96, 128, 256):
        for base in (10.0, 10000.0, 150000.0, 500000.0, 1000000.0):
            check_rotation(SETTINGS[0], make_values(1, 1, 3, dims), dims, base=base, offset=100_000)


@on_every_instruction_set
def test_rotation_takes_one_offset_for_each_sequence(setting: Setting) -> None:
    x = make_values(3, 4, 5, 64)
    for offset in (
        mx.array([0, 7, 300]),
        mx.array(12),
        mx.array([12]),
        mx.array([0, 7, 300], dtype=mx.int64),
        mx.array([3, 3, 3]) + 1,
    ):
        check_rotation(setting, x, 64, offset=offset)
    check_rotation(setting, make_values(1, 4, 1, 64), 64, offset=mx.array([9]))


@on_every_instruction_set
def test_sequences_of_padding_do_not_disturb_the_others(setting: Setting) -> None:
    """Positions of left padding are negative; what they give is masked."""
    x = make_values(2, 3, 6, 32)
    stock = rotate(x, 32, offset=mx.array([-4, 0]))
    with computing(setting):
        ours = rotate(x, 32, offset=mx.array([-4, 0]))
        mx.eval(ours)
    assert_close(ours[1], stock[1], ROTATION)
    assert_close(ours[0, :, 4:], stock[0, :, 4:], ROTATION)
    assert np.isfinite(to_numpy(ours)).all()


@on_every_instruction_set
def test_rotation_takes_views(setting: Setting) -> None:
    views = {
        "heads from tokens": make_values(2, 5, 4, 64).transpose(0, 2, 1, 3),
        "part of a joined projection": make_values(2, 5, 12, 64)[:, :, 4:8].transpose(0, 2, 1, 3),
        "part of a head": make_values(2, 4, 5, 96)[..., 16:80],
        "every second": make_values(2, 4, 5, 128)[..., ::2],
        "broadcast": mx.broadcast_to(make_values(1, 1, 5, 64), (2, 4, 5, 64)),
        "transposed": make_values(2, 4, 64, 5).swapaxes(2, 3),
    }
    for name, x in views.items():
        for is_evaluated in (False, True):
            if is_evaluated:
                mx.eval(x)
            stock = rotate(mx.contiguous(x), 64, offset=3)
            mx.eval(stock)
            with computing(setting):
                assert_close(rotate(x, 64, offset=3), stock, ROTATION, (name, is_evaluated))


@on_every_instruction_set
def test_rotations_that_are_not_covered_are_stocks(setting: Setting) -> None:
    flat, half = make_values(2, 5, 64), make_values(1, 2, 5, 64, dtype=mx.float16)
    calls = {
        "three dimensions": lambda: rotate(flat, 64, offset=2),
        "float16": lambda: rotate(half, 64, offset=2),
        "five dimensions": lambda: rotate(make_values(1, 2, 3, 5, 64), 64, offset=2),
        "no tokens": lambda: rotate(mx.zeros((1, 2, 0, 64)), 64),
    }
    assert_stock(calls, setting)


ROPE_KINDS = {
    "default": None,
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0},
    "longrope": {
        "type": "longrope",
        "short_factor": [1.0 + i / 16 for i in range(16)],
        "long_factor": [2.0 + i / 4 for i in range(16)],
        "original_max_position_embeddings": 64,
    },
}


@on_every_instruction_set
@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_rope_modules_of_mlx_lm_give_what_stock_gives(kind: str, setting: Setting) -> None:
    rope = initialize_rope(32, 10000.0, False, ROPE_KINDS[kind], max_position_embeddings=256)
    x = make_values(1, 3, 70, 32)
    for offset in (0, 5, 200):
        stock = rope(x, offset=offset)
        mx.eval(stock)
        with computing(setting):
            assert_close(rope(x, offset=offset), stock, ROTATION, offset)


# -- SwiGLU --


@on_every_instruction_set
def test_swiglu_agrees_with_float64(setting: Setting) -> None:
    for shape in ((1,), (1, 1), (3, 5), (1, 15, 96), (2, 130, 33), (1, 1, 1536), (0, 8)):
        gate, up = make_values(*shape) * 4, make_values(*shape, seed=1)
        wide = to_numpy(gate)
        with computing(setting):
            ours = mlx_lm.models.activations.swiglu(gate, up)
            assert_close(ours, wide / (1 + np.exp(-wide)) * to_numpy(up), GATES, shape)


@on_every_instruction_set
def test_swiglu_of_extreme_gates_is_right(setting: Setting) -> None:
    gate = mx.array([-1e30, -1000.0, -104.0, -88.0, -20.0, -0.0, 0.0, 1e-30, 20.0, 88.0, 1000.0, 1e30] * 3)
    stock = mx.sigmoid(gate) * gate
    with computing(setting):
        ours = mlx_lm.models.activations.swiglu(gate, mx.ones_like(gate))
        mx.eval(ours)
    assert np.allclose(to_numpy(ours), to_numpy(stock), rtol=1e-5, atol=1e-8)


@on_every_instruction_set
def test_swiglu_takes_views_and_leaves_other_types_to_stock(setting: Setting) -> None:
    joined = make_values(3, 96)
    gate, up = joined[:, :48], joined[:, 48:]
    half = [part.astype(mx.float16) for part in (gate, up)]
    stock = [mlx_lm.models.activations.swiglu(gate, up), mlx_lm.models.activations.swiglu(*half)]
    stock.append(mlx_lm.models.activations.swiglu(gate, up[:1]))
    mx.eval(stock)
    with computing(setting):
        assert_close(mlx_lm.models.activations.swiglu(gate, up), stock[0], GATES)
        assert_same(mlx_lm.models.activations.swiglu(*half), stock[1])
        assert_same(mlx_lm.models.activations.swiglu(gate, up[:1]), stock[2])


def test_models_that_took_the_name_of_swiglu_use_the_kernel_too() -> None:
    models = [
        module
        for name, module in sys.modules.items()
        if name.startswith("mlx_lm.models.") and hasattr(module, "swiglu")
    ]
    before = [module.swiglu for module in models]
    assert mlx_lm.models.llama in models
    with computing(SETTINGS[0]):
        assert all(module.swiglu is not stock for module, stock in zip(models, before, strict=True))
    assert [module.swiglu for module in models] == before


# -- any shape --


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    setting=st.sampled_from(SETTINGS),
    shape=st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 70)),
    offset=st.integers(0, 500),
    traditional=st.booleans(),
    data=st.data(),
)
def test_rows_of_any_shape_agree_with_stock(
    setting: Setting, shape: tuple[int, ...], offset: int, traditional: bool, data: st.DataObject
) -> None:
    x = make_values(*shape)
    stock_norm = norm_exactly(x, None, 1e-6)
    dims = 2 * data.draw(st.integers(0, shape[-1] // 2))
    with computing(setting):
        assert_close(mx.fast.rms_norm(x, None, 1e-6), stock_norm, NORMS)
    if dims:
        check_rotation(setting, x, dims, offset=offset, traditional=traditional)
