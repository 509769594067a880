"""What is odd: numbers that are none, nothing at all, and arguments that make no sense. Nothing of it may crash."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import (
    SETTINGS,
    Setting,
    assert_same,
    computing,
    find_outcome,
    make_packed,
    make_values,
    on_every_instruction_set,
)
from mlx import nn
from mlx_lm.models.activations import swiglu

Operation = Callable[[mx.array], mx.array]
NONES = {"nan": mx.nan, "inf": mx.inf, "-inf": -mx.inf}


def list_row_operations(columns: int) -> dict[str, Operation]:
    """Operations on [rows, columns] whose rows do not know of each other."""
    packed = {bits: make_packed(37, columns, bits=bits, group_size=32, dtype=mx.float16) for bits in (2, 3, 4, 5, 6, 8)}
    stack = make_packed(3, 37, columns, bits=4, group_size=32)
    linear = nn.Linear(columns, 37, bias=True)
    linear.weight, linear.bias = make_values(37, columns), make_values(37)
    operations: dict[str, Operation] = {
        f"{bits}-bit product": lambda x, w=w: mx.quantized_matmul(x, *w.arrays, **w.packing)
        for bits, w in packed.items()
    }
    return operations | {
        "product": linear,
        "gathered product": lambda x: mx.gather_qmm(
            x[:, None], *stack.arrays, rhs_indices=mx.arange(x.shape[0]) % 3, **stack.packing
        )[:, 0],
        "rms norm": lambda x: mx.fast.rms_norm(x, make_values(columns), 1e-5),
        "layer norm": lambda x: mx.fast.layer_norm(x, make_values(columns), None, 1e-5),
        "attention": lambda x: attend_to(x, make_values(1, 1, 9, 64)),
    }


def attend_to(x: mx.array, keys: mx.array) -> mx.array:
    """Each row as a query."""
    q = x[None, None, :, :64]
    return mx.fast.scaled_dot_product_attention(q, keys, keys, scale=0.125)[0, 0]


@on_every_instruction_set
@pytest.mark.parametrize("none", NONES)
@pytest.mark.parametrize("num_rows", [4, 40])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_bad_row_stays_alone(precision: str, num_rows: int, none: str, setting: Setting) -> None:
    good = make_values(num_rows, 192)
    for column in (0, 63):
        bad = mx.array(good)
        bad[2, column] = NONES[none]
        mx.eval(bad)
        for name, operation in list_row_operations(192).items():
            with computing(setting, precision):
                clean, ours = operation(good), operation(bad)
                mx.eval(clean, ours)
            rows = np.arange(num_rows) != 2
            assert np.array_equal(np.array(ours)[rows], np.array(clean)[rows]), (name, column)
            if name not in {"rms norm", "layer norm"} or none == "nan":
                assert not np.isfinite(np.array(ours)[2]).all(), (name, column)
            else:
                assert not np.isfinite(np.array(ours)[2, column]), (name, column)


@on_every_instruction_set
@pytest.mark.parametrize("none", NONES)
def test_products_of_a_bad_row_are_nowhere_finite(none: str, setting: Setting) -> None:
    """In each place that stock gives none: whoever samples from such logits must see it."""
    bad = mx.array(make_values(3, 192))
    bad[1, 5] = NONES[none]
    for bits in (2, 3, 4, 5, 6, 8):
        w = make_packed(37, 192, bits=bits, group_size=32)
        for num_inputs in (1, 3):
            x = bad[1 : 1 + num_inputs] if num_inputs == 1 else bad
            for precision in ("exact", "fast"):
                with computing(setting, precision):
                    ours = mx.quantized_matmul(x, *w.arrays, **w.packing)
                    mx.eval(ours)
                row = np.array(ours)[0 if num_inputs == 1 else 1]
                assert not np.isfinite(row).any(), (bits, num_inputs, precision)


@on_every_instruction_set
def test_swiglu_passes_on_what_is_no_number(setting: Setting) -> None:
    gate, up = make_values(5, 33), make_values(5, 33, seed=1)
    stock = swiglu(gate, up)
    bad_gate, bad_up = mx.array(gate), mx.array(up)
    bad_gate[1, 3], bad_up[2, 4], bad_gate[3, 5] = mx.nan, mx.nan, mx.inf
    with computing(setting):
        clean, ours = np.array(swiglu(gate, up)), np.array(swiglu(bad_gate, bad_up))
    is_bad = ~np.isfinite(ours)
    assert {tuple(map(int, place)) for place in np.argwhere(is_bad)} == {(1, 3), (2, 4), (3, 5)}
    assert np.array_equal(ours[~is_bad], clean[~is_bad])
    assert np.allclose(clean, np.array(stock), rtol=1e-5, atol=1e-6)


@on_every_instruction_set
def test_rotation_passes_on_what_is_no_number(setting: Setting) -> None:
    x = mx.array(make_values(1, 2, 3, 64))
    clean_x = mx.array(x)
    x[0, 1, 2, 7] = mx.nan
    with computing(setting):
        clean, ours = (
            np.array(mx.fast.rope(values, 64, traditional=False, base=1e4, scale=1.0, offset=5))
            for values in (clean_x, x)
        )
    is_bad = np.isnan(ours)
    assert {tuple(map(int, place)) for place in np.argwhere(is_bad)} == {(0, 1, 2, 7), (0, 1, 2, 39)}
    assert np.array_equal(ours[~is_bad], clean[~is_bad])


@on_every_instruction_set
def test_attention_passes_on_what_is_no_number(setting: Setting) -> None:
    q, k, v = make_values(2, 4, 3, 64), mx.array(make_values(2, 2, 20, 64, seed=1)), make_values(2, 2, 20, 64, seed=2)
    with computing(setting):
        clean = np.array(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125))
    k[1, 0, 7, 3] = mx.nan
    with computing(setting):
        ours = np.array(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125))
    assert np.isnan(ours[1, :2]).all()
    assert np.array_equal(ours[0], clean[0])
    assert np.array_equal(ours[1, 2:], clean[1, 2:])


@on_every_instruction_set
def test_what_a_mask_hides_may_be_anything(setting: Setting) -> None:
    """Buffers beyond the offset, and padding, may hold what is no number: with a slice or a bool mask nobody sees it."""
    q, k = make_values(1, 4, 5, 64), mx.array(make_values(1, 2, 40, 64, seed=1))
    v = make_values(1, 2, 40, 64, seed=2)
    with computing(setting):
        clean = np.array(
            mx.fast.scaled_dot_product_attention(q, k[..., :20, :], v[..., :20, :], scale=0.125, mask="causal")
        )
        k[..., 20:, :] = mx.nan
        ours = np.array(
            mx.fast.scaled_dot_product_attention(q, k[..., :20, :], v[..., :20, :], scale=0.125, mask="causal")
        )
        assert np.array_equal(ours, clean)
        k[..., 20:, :] = 1e30
        mask = mx.arange(40) < 20
        ours = np.array(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=mask))
    stock = np.array(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=mask))
    assert np.allclose(ours, stock, atol=1e-5)


@on_every_instruction_set
@pytest.mark.parametrize("bits", [4, 8])
def test_scales_that_are_no_numbers_reach_their_column_alone(bits: int, setting: Setting) -> None:
    w = make_packed(37, 192, bits=bits, group_size=64)
    scales = mx.array(w.scales)
    scales[9, 1] = mx.nan
    for num_inputs in (1, 33):
        x = make_values(num_inputs, 192)
        with computing(setting):
            clean = np.array(mx.quantized_matmul(x, *w.arrays, **w.packing))
            ours = np.array(mx.quantized_matmul(x, w.codes, scales, w.biases, **w.packing))
        others = np.arange(37) != 9
        assert np.isnan(ours[:, 9]).all()
        assert np.array_equal(ours[:, others], clean[:, others])


# -- nothing --


def list_empty_calls() -> Iterator[tuple[str, Callable[[], mx.array]]]:
    stack = make_packed(3, 37, 64, bits=4, group_size=32)
    linear, embedding, quantized = nn.Linear(64, 37), nn.Embedding(37, 64), nn.QuantizedEmbedding(37, 64)
    no_tokens = mx.zeros((1, 0), mx.int32)
    nowhere = mx.zeros((0,), mx.uint32)
    no_queries, keys = mx.zeros((1, 4, 0, 64)), make_values(1, 2, 9, 64)
    for leading in ((0,), (1, 0), (0, 5), (2, 0, 3)):
        x = mx.zeros((*leading, 64))
        yield f"linear {leading}", lambda x=x: linear(x)
        yield f"as linear {leading}", lambda x=x: embedding.as_linear(x)
        yield f"rms norm {leading}", lambda x=x: mx.fast.rms_norm(x, None, 1e-5)
        yield f"swiglu {leading}", lambda x=x: swiglu(x, x)
    yield "embedding", lambda: embedding(no_tokens)
    yield "quantized embedding", lambda: quantized(no_tokens)
    yield "gathered", lambda: mx.gather_qmm(mx.zeros((0, 1, 64)), *stack.arrays, rhs_indices=nowhere, **stack.packing)
    yield "gathered, plain", lambda: mx.gather_mm(mx.zeros((0, 1, 64)), make_values(3, 64, 37), rhs_indices=nowhere)
    yield "rope", lambda: mx.fast.rope(no_queries, 64, traditional=False, base=1e4, scale=1.0, offset=0)
    yield "no queries", lambda: mx.fast.scaled_dot_product_attention(no_queries, keys, keys, scale=1.0)
    yield "no sequences", lambda: mx.fast.scaled_dot_product_attention(no_queries[:0], keys[:0], keys[:0], scale=1.0)


@on_every_instruction_set
def test_nothing_gives_nothing_as_in_stock(setting: Setting) -> None:
    for name, call in list_empty_calls():
        stock = find_outcome(call)
        with computing(setting):
            assert find_outcome(call) == stock, name


QUANTIZED_NOTHING = """
import mlx.core as mx
from paceline_kernels.takeover import taken_over
packed = mx.quantize(mx.ones((37, 64)), group_size=32, bits=4)
with taken_over():
    for leading in ((0,), (1, 0), (0, 5), (2, 0, 3)):
        print(mx.quantized_matmul(mx.zeros((*leading, 64)), *packed, group_size=32, bits=4).tolist())
"""


def test_quantized_products_of_nothing_are_nothing() -> None:
    """Stock MLX 0.32.4 ends the process here (it divides by zero), so this runs in another one."""
    done = subprocess.run(
        (sys.executable, "-c", QUANTIZED_NOTHING), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split("\n")[:-1], done.returncode) == (["[]", "[[]]", "[]", "[[], []]"], 0)


# -- nonsense --


def list_absurd_calls() -> Iterator[tuple[str, Callable[[], mx.array]]]:  # noqa: PLR0915  (a list)
    w = make_packed(64, 128, bits=4, group_size=64)
    stack = make_packed(3, 64, 128, bits=4, group_size=64)
    x, one, experts = make_values(3, 128), make_values(3, 1, 128), mx.array([0, 1, 2], dtype=mx.uint32)
    codes, scales, biases = w.arrays
    packing = w.packing
    yield "too few columns", lambda: mx.quantized_matmul(make_values(3, 64), *w.arrays, **packing)
    yield "too many columns", lambda: mx.quantized_matmul(make_values(3, 256), *w.arrays, **packing)
    yield "a single number", lambda: mx.quantized_matmul(mx.array(1.0), *w.arrays, **packing)
    yield "7 bits", lambda: mx.quantized_matmul(x, *w.arrays, group_size=64, bits=7)
    yield "other bits", lambda: mx.quantized_matmul(x, *w.arrays, group_size=64, bits=8)
    yield "groups of 48", lambda: mx.quantized_matmul(x, *w.arrays, group_size=48, bits=4)
    yield "other groups", lambda: mx.quantized_matmul(x, *w.arrays, group_size=32, bits=4)
    yield "negative groups", lambda: mx.quantized_matmul(x, *w.arrays, group_size=-64, bits=4)
    yield "unknown mode", lambda: mx.quantized_matmul(x, *w.arrays, mode="best", **packing)
    yield "no biases", lambda: mx.quantized_matmul(x, codes, scales, **packing)
    yield "no scales", lambda: mx.quantized_matmul(x, codes)
    yield "unknown argument", lambda: mx.quantized_matmul(x, *w.arrays, speed=11)
    yield "float codes", lambda: mx.quantized_matmul(x, codes.astype(mx.float32), scales, biases, **packing)
    yield (
        "integer scales",
        lambda: mx.quantized_matmul(x, codes, scales.astype(mx.int32), biases.astype(mx.int32), **packing),
    )
    yield "scales of other type", lambda: mx.quantized_matmul(x, codes, scales.astype(mx.float16), biases, **packing)
    yield "scales of fewer rows", lambda: mx.quantized_matmul(x, codes, scales[:40], biases[:40], **packing)
    yield "biases of fewer rows", lambda: mx.quantized_matmul(x, codes, scales, biases[:40], **packing)
    yield "integer input", lambda: mx.quantized_matmul(x.astype(mx.int32), *w.arrays, **packing)
    yield "one row of codes", lambda: mx.quantized_matmul(x, codes[0], scales[0], biases[0], **packing)
    yield "a list", lambda: mx.quantized_matmul([1.0] * 128, *w.arrays, **packing)
    yield "nothing", lambda: mx.quantized_matmul(None, *w.arrays, **packing)
    yield "text for bits", lambda: mx.quantized_matmul(x, *w.arrays, group_size=64, bits="4")
    yield (
        "gathered, too few columns",
        lambda: mx.gather_qmm(make_values(3, 1, 64), *stack.arrays, rhs_indices=experts, **packing),
    )
    yield "gathered, float experts", lambda: mx.gather_qmm(one, *stack.arrays, rhs_indices=mx.array([0.0]), **packing)
    yield (
        "gathered, shapes",
        lambda: mx.gather_qmm(one, *stack.arrays, rhs_indices=mx.array([0, 1], mx.uint32), **packing),
    )
    yield "gathered, one matrix", lambda: mx.gather_qmm(one, *w.arrays, rhs_indices=experts * 0, **packing)
    yield "gathered, a row", lambda: mx.gather_qmm(x[0], *stack.arrays, rhs_indices=experts, **packing)
    yield "plain, too few columns", lambda: mx.gather_mm(one, make_values(3, 64, 37), rhs_indices=experts)
    yield "plain, float experts", lambda: mx.gather_mm(one, make_values(3, 128, 37), rhs_indices=mx.array([0.0]))
    yield "linear, too few columns", lambda: nn.Linear(64, 5)(x)
    yield "linear, too few columns and bias", lambda: nn.Linear(64, 5, bias=False)(x)
    yield "linear, a single number", lambda: nn.Linear(1, 5, bias=False)(mx.array(1.0))
    yield "linear, integers", lambda: nn.Linear(128, 5, bias=False)(x.astype(mx.int32))
    yield "embedding, floats", lambda: nn.Embedding(5, 64)(x)
    yield "embedding, too few columns", lambda: nn.Embedding(5, 64).as_linear(x)
    yield "quantized embedding, floats", lambda: nn.QuantizedEmbedding(5, 64)(x)
    yield "norm, other weight", lambda: mx.fast.rms_norm(x, make_values(64), 1e-5)
    yield "norm, matrix as weight", lambda: mx.fast.rms_norm(x, make_values(1, 128), 1e-5)
    yield "norm, integer weight", lambda: mx.fast.rms_norm(x, mx.ones((128,), mx.int32), 1e-5)
    yield "norm, a single number", lambda: mx.fast.rms_norm(mx.array(1.0), None, 1e-5)
    yield "norm, integers", lambda: mx.fast.rms_norm(x.astype(mx.int32), None, 1e-5)
    yield "layer norm, other weight", lambda: mx.fast.layer_norm(x, make_values(64), None, 1e-5)
    yield "layer norm, other bias", lambda: mx.fast.layer_norm(x, None, make_values(64), 1e-5)
    yield "layer norm, a single number", lambda: mx.fast.layer_norm(mx.array(1.0), None, None, 1e-5)
    yield "swiglu, other shape", lambda: swiglu(x, make_values(3, 64))
    yield "swiglu, integers", lambda: swiglu(x.astype(mx.int32), x.astype(mx.int32))
    yield from list_absurd_rotations()
    yield from list_absurd_attentions()


def list_absurd_rotations() -> Iterator[tuple[str, Callable[[], mx.array]]]:
    x = make_values(2, 3, 5, 64)
    usual = {"traditional": False, "base": 10000.0, "scale": 1.0, "offset": 0}
    changes = {
        "no base": {"base": None},
        "base and frequencies": {"freqs": mx.ones((32,))},
        "too few frequencies": {"base": None, "freqs": mx.ones((16,))},
        "too many frequencies": {"base": None, "freqs": mx.ones((64,))},
        "matrix of frequencies": {"base": None, "freqs": mx.ones((2, 16))},
        "float offset": {"offset": mx.array(1.0)},
        "offsets of other number": {"offset": mx.array([1, 2, 3])},
        "matrix of offsets": {"offset": mx.array([[1, 2]])},
        "text for scale": {"scale": "1"},
        "unknown argument": {"speed": 11},
    }
    for name, change in changes.items():
        yield f"rope, {name}", lambda change=change: mx.fast.rope(x, 64, **{**usual, **change})
    yield "rope, odd", lambda: mx.fast.rope(x, 63, **usual)
    yield "rope, nothing", lambda: mx.fast.rope(x, 0, **usual)
    yield "rope, negative", lambda: mx.fast.rope(x, -2, **usual)
    yield "rope, too wide", lambda: mx.fast.rope(x, 66, **usual)
    yield "rope, two dimensions", lambda: mx.fast.rope(x[0, 0], 64, **usual)
    yield "rope, integers", lambda: mx.fast.rope(x.astype(mx.int32), 64, **usual)
    yield "rope, no arguments", lambda: mx.fast.rope(x, 64)


def list_absurd_attentions() -> Iterator[tuple[str, Callable[[], mx.array]]]:
    q, k = make_values(2, 4, 5, 64), make_values(2, 2, 9, 64)
    changes = {
        "unknown mask": {"mask": "diagonal"},
        "mask of other shape": {"mask": mx.ones((5, 8), mx.bool_)},
        "mask of other batch": {"mask": mx.ones((3, 1, 5, 9), mx.bool_)},
        "mask of five dimensions": {"mask": mx.ones((1, 1, 1, 5, 9), mx.bool_)},
        "integer mask": {"mask": mx.ones((5, 9), mx.int32)},
        "too few sinks": {"sinks": mx.ones((2,))},
        "too many sinks": {"sinks": mx.ones((8,))},
        "matrix of sinks": {"sinks": mx.ones((2, 2))},
        "one sink": {"sinks": mx.array(1.0)},
        "integer sinks": {"sinks": mx.ones((4,), mx.int32)},
        "no scale": {"scale": None},
        "unknown argument": {"speed": 11},
    }
    for name, change in changes.items():
        yield (
            f"attention, {name}",
            lambda change=change: mx.fast.scaled_dot_product_attention(q, k, k, **{"scale": 1.0, **change}),
        )
    yield "attention, heads", lambda: mx.fast.scaled_dot_product_attention(q[:, :3], k, k, scale=1.0)
    yield "attention, batches", lambda: mx.fast.scaled_dot_product_attention(q, k[:1], k[:1], scale=1.0)
    yield "attention, keys and values", lambda: mx.fast.scaled_dot_product_attention(q, k, k[:, :, :5], scale=1.0)
    yield "attention, key heads", lambda: mx.fast.scaled_dot_product_attention(q, k, k[:, :1], scale=1.0)
    yield "attention, dimensions", lambda: mx.fast.scaled_dot_product_attention(q[0], k[0], k[0], scale=1.0)
    yield "attention, sizes", lambda: mx.fast.scaled_dot_product_attention(q[..., :32], k, k, scale=1.0)
    yield "attention, types", lambda: mx.fast.scaled_dot_product_attention(q, k.astype(mx.int32), k, scale=1.0)
    yield "attention, no keys", lambda: mx.fast.scaled_dot_product_attention(q, k[:, :, :0], k[:, :, :0], scale=1.0)
    yield "attention, all by place", lambda: mx.fast.scaled_dot_product_attention(q, k, k, 1.0)


ABSURD_CALLS = dict(list_absurd_calls())


@pytest.mark.parametrize("name", ABSURD_CALLS)
def test_nonsense_is_answered_as_by_stock(name: str) -> None:
    stock = find_outcome(ABSURD_CALLS[name])
    with computing(SETTINGS[0]):
        assert find_outcome(ABSURD_CALLS[name]) == stock


def test_an_error_leaves_the_kernels_working() -> None:
    w = make_packed(64, 128, bits=4, group_size=64)
    x = make_values(3, 128)
    with computing(SETTINGS[1]):
        before = mx.quantized_matmul(x, *w.arrays, **w.packing)
        with pytest.raises(ValueError, match=r"."):
            mx.quantized_matmul(make_values(3, 64), *w.arrays, **w.packing)
        assert_same(mx.quantized_matmul(x, *w.arrays, **w.packing), before)
