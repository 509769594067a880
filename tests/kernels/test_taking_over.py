"""Which of MLX's functions are taken over, that the kernels then compute them, and that MLX gets them back."""

import io
import itertools
import sys
from collections.abc import Callable

import mlx.core as mx
import pytest
from kernels.comparing import (
    FLOATS,
    INSTRUCTION_SETS,
    SETTINGS,
    assert_close,
    assert_same,
    computing,
    make_packed,
    make_values,
    taken_over,
)
from mlx import nn
from mlx_lm.models import activations

import paceline_kernels
from paceline_kernels import _native
from paceline_kernels.takeover import find_kernels

NAMES = [(mx, "quantized_matmul"), (mx, "gather_qmm"), (mx, "gather_mm")]
NAMES += [(mx.fast, name) for name in ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention")]
NAMES += [(nn.Linear, "__call__"), (nn.Embedding, "as_linear"), (activations, "swiglu")]


def look_up() -> list[object]:
    return [getattr(owner, name) for owner, name in NAMES]


def list_operations(result: mx.array) -> str:
    """The names of the operations that a result will be computed with."""
    drawing = io.StringIO()
    mx.export_to_dot(drawing, result)
    return drawing.getvalue()


def list_covered_calls() -> dict[str, tuple[str, Callable[[], mx.array]]]:
    x, heads, keys = make_values(1, 3, 192), make_values(1, 4, 3, 64), make_values(1, 2, 9, 64)
    stack, experts = make_packed(3, 37, 192, bits=4, group_size=64), mx.array([0, 2, 1], mx.uint32)
    calls = {}
    for bits, size, dtype in itertools.product((2, 3, 4, 5, 6, 8), (32, 64, 128), FLOATS):
        w = make_packed(37, 256, bits=bits, group_size=size, dtype=dtype)
        calls[f"product of {bits} bits in {size}s with {dtype} scales"] = (
            "PacelineMultiply",
            lambda w=w: mx.quantized_matmul(make_values(2, 256), *w.arrays, **w.packing),
        )
    for dtype in FLOATS:
        linear, embedding = nn.Linear(192, 5, bias=False), nn.Embedding(5, 192)
        linear.weight, embedding.weight = make_values(5, 192, dtype=dtype), make_values(5, 192, dtype=dtype)
        calls[f"linear, {dtype}"] = "PacelineMultiply", lambda layer=linear: layer(x)
        calls[f"embedding as linear, {dtype}"] = "PacelineMultiply", lambda layer=embedding: layer.as_linear(x)
    attend = {"scale": 1.0, "mask": "causal"}
    return calls | {
        "gathered": (
            "PacelineMultiplyGathered",
            lambda: mx.gather_qmm(x[0][:, None], *stack.arrays, rhs_indices=experts, **stack.packing),
        ),
        "gathered, plain": (
            "PacelineMultiplyGathered",
            lambda: mx.gather_mm(x[0][:, None], make_values(3, 5, 192).swapaxes(1, 2), rhs_indices=experts),
        ),
        "rms norm": ("PacelineRmsNorm", lambda: mx.fast.rms_norm(x, make_values(192), 1e-5)),
        "layer norm": ("PacelineLayerNorm", lambda: mx.fast.layer_norm(x, None, None, 1e-5)),
        "rope": ("PacelineRotate", lambda: mx.fast.rope(heads, 64, traditional=False, base=1e4, scale=1.0, offset=3)),
        "attention": ("PacelineAttend", lambda: mx.fast.scaled_dot_product_attention(heads, keys, keys, **attend)),
        "swiglu": ("PacelineGate", lambda: activations.swiglu(x, x)),
    }


def test_kernels_compute_what_they_cover() -> None:
    calls = list_covered_calls()
    for name, (operation, call) in calls.items():
        assert "Paceline" not in list_operations(call()), name
        with taken_over():
            assert operation in list_operations(call()), name
        assert "Paceline" not in list_operations(call()), name


def test_functions_come_back_also_after_an_error() -> None:
    before = look_up()
    with taken_over():
        assert all(ours is not stock for ours, stock in zip(look_up(), before, strict=True))
    assert look_up() == before
    with pytest.raises(KeyError), taken_over():
        raise KeyError
    assert look_up() == before


def test_taking_over_twice_gives_back_stocks_functions() -> None:
    before = look_up()
    with taken_over(), taken_over("fast"):
        assert find_kernels().is_fast
    assert look_up() == before
    assert find_kernels() is None


def test_precisions_differ_and_exact_is_the_default() -> None:
    w, x = make_packed(64, 256, bits=4, group_size=64), make_values(3, 256)
    results = {}
    for precision in ("exact", "fast"):
        with computing(SETTINGS[0], precision):
            results[precision] = mx.quantized_matmul(x, *w.arrays, **w.packing)
            mx.eval(results[precision])
    with taken_over():
        assert_same(mx.quantized_matmul(x, *w.arrays, **w.packing), results["exact"])
    if not _native.has_fast():
        pytest.skip("this processor has no int8 products: fast is exact")
    assert not mx.array_equal(results["exact"], results["fast"]).item()
    assert_close(results["fast"], results["exact"], 2e-2)


def test_using_the_kernels_is_one_call_and_reports() -> None:
    before = look_up()
    with taken_over():  # so that MLX's functions are put back
        report = paceline_kernels.use_kernels(num_threads=2)
        try:
            assert (report.in_use, report.reason, report.num_threads) == (True, "", 2)
            assert report.instruction_set == INSTRUCTION_SETS[0]
            assert find_kernels() is not None
        finally:
            find_kernels().give_back()
            _native.set_threads(1)
    assert look_up() == before


def test_an_unknown_precision_or_instruction_set_is_refused() -> None:
    before = look_up()
    with pytest.raises(ValueError, match="exact or fast"):
        paceline_kernels.use_kernels(precision="best", num_threads=1)
    assert look_up() == before
    in_use = _native.instruction_set()
    with pytest.raises(ValueError, match="avx1024"):
        _native.use_instruction_set("avx1024")
    assert _native.instruction_set() == in_use


def test_instruction_sets_are_listed_best_first_with_one_for_every_processor() -> None:
    assert INSTRUCTION_SETS[-1] == "portable"
    assert len(set(INSTRUCTION_SETS)) == len(INSTRUCTION_SETS)
    order = [name for name in ("avx512-vnni", "avx512", "avx2", "neon", "portable") if name in INSTRUCTION_SETS]
    assert list(INSTRUCTION_SETS) == order


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-3, 1), (1, 1), (2, 2), (5, 5)])
def test_thread_counts_are_at_least_one(asked: int, given: int) -> None:
    before = _native.get_threads()
    try:
        _native.set_threads(asked)
        assert _native.get_threads() == given
        w = make_packed(577, 576, bits=4, group_size=64)
        ours = _native.multiply(make_values(3, 576), *w.arrays, 64, 4, False)
        mx.eval(ours)
    finally:
        _native.set_threads(before)
    with computing(SETTINGS[0]):
        assert_same(mx.quantized_matmul(make_values(3, 576), *w.arrays, **w.packing), ours)


def test_gradients_are_refused_not_wrong() -> None:
    w, x = make_packed(37, 64, bits=4, group_size=32), make_values(3, 64)
    stock = mx.grad(lambda values: mx.quantized_matmul(values, *w.arrays, **w.packing).sum())(x)
    mx.eval(stock)
    with taken_over():
        try:
            ours = mx.grad(lambda values: mx.quantized_matmul(values, *w.arrays, **w.packing).sum())(x)
            mx.eval(ours)
        except (RuntimeError, ValueError):
            return
    assert_close(ours, stock, 1e-5)


def test_compiled_functions_use_the_kernels() -> None:
    w = make_packed(37, 64, bits=4, group_size=32)

    def compute(x: mx.array) -> mx.array:
        product = mx.quantized_matmul(mx.fast.rms_norm(x * 2, None, 1e-5), *w.arrays, **w.packing)
        return activations.swiglu(product, product + 1)

    expected = [compute(make_values(rows, 64)) for rows in (3, 1, 40)]
    mx.eval(expected)
    with computing(SETTINGS[0]):
        for is_shapeless in (False, True):
            compiled = mx.compile(compute, shapeless=is_shapeless)
            try:
                ours = [compiled(make_values(rows, 64)) for rows in (3, 1, 40)]
                mx.eval(ours)
            except ValueError as error:
                assert is_shapeless, error  # shapes that are not inferred are an error, not a wrong result
                continue
            for one, other in zip(ours, expected, strict=True):
                assert_close(one, other, 1e-5, is_shapeless)


def test_modules_imported_later_are_taken_over_too() -> None:
    name = "mlx_lm.models.stablelm"
    for module in [name for name in sys.modules if name == "mlx_lm.models.stablelm"]:
        del sys.modules[module]
    with taken_over():
        ours = activations.swiglu
        module = __import__(name, fromlist=["swiglu"])
        assert module.swiglu is ours
    del sys.modules[name]
