"""The functions of MLX that the kernels take over, process-wide: mlx-lm's model files call them by these names.

Each looks at its arguments and either computes with a kernel or calls what it replaced, so an argument the kernels do not know is
never an error. The object in charge is found through what it replaced: there is no other state.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx_lm.models.activations as mlx_lm_activations
from mlx import nn

from paceline_kernels import _native
from paceline_kernels.rotation import find_frequencies

GROUP_SIZES = frozenset({32, 64, 128})
WIDTHS = frozenset({2, 3, 4, 5, 6, 8})
VALUES = frozenset({mx.float32, mx.float16, mx.bfloat16})
SILU = 0
Array = mx.array


class Kernels:
    """Takes MLX's functions over and gives them back."""

    def __init__(self, *, is_fast: bool) -> None:
        self.is_fast = is_fast
        self.stock: dict[tuple[Any, str], Any] = {}

    def take_over(self) -> None:
        """Replace the functions; the one that was in charge before, if any, gives back first."""
        before = find_kernels()
        if before is not None:
            before.give_back()
        for owner, name, ours in self._replacements():
            self.stock[owner, name] = getattr(owner, name)
            setattr(owner, name, ours)

    def give_back(self) -> None:
        """Put MLX's own functions back."""
        for (owner, name), stock in self.stock.items():
            setattr(owner, name, stock)
        self.stock.clear()

    def _replacements(self) -> list[tuple[Any, str, Any]]:
        functions = [
            (mx, "quantized_matmul", self.quantized_matmul),
            (mx, "gather_qmm", self.gather_qmm),
            (mx, "gather_mm", self.gather_mm),
            (mx.fast, "rms_norm", self.rms_norm),
            (mx.fast, "layer_norm", self.layer_norm),
            (mx.fast, "rope", self.rope),
            (mx.fast, "scaled_dot_product_attention", self.attention),
        ]
        methods = [
            (nn.Linear, "__call__", _as_method(self.linear)),
            (nn.Embedding, "__call__", _as_method(self.embedding)),
            (nn.Embedding, "as_linear", _as_method(self.embedding_as_linear)),
            (nn.QuantizedEmbedding, "__call__", _as_method(self.quantized_embedding)),
        ]
        models = [
            mlx_lm_activations,
            *(sys.modules[name] for name in sorted(sys.modules) if name.startswith("mlx_lm.models.")),
        ]
        swiglus = {id(module): (module, "swiglu", self.swiglu) for module in models if hasattr(module, "swiglu")}
        return [*functions, *methods, *swiglus.values()]

    # -- products --

    def quantized_matmul(self, x: Array, w: Array, /, *arguments: Any, **named: Any) -> Array:
        call = _Packed(*arguments, **named)
        if call.is_covered(x, w) and w.ndim == 2:
            return _native.multiply(x, w, call.scales, call.biases, call.group_size, call.bits, self.is_fast)
        return self.stock[mx, "quantized_matmul"](x, w, *arguments, **named)

    def gather_qmm(self, x: Array, w: Array, /, *arguments: Any, **named: Any) -> Array:
        call = _Gathered(*arguments, **named)
        if call.is_covered(x, w) and w.ndim == 3 and call.takes_single_rows(x):
            experts = call.rhs_indices
            return _native.multiply_gathered(
                x, w, call.scales, call.biases, experts, call.group_size, call.bits, self.is_fast
            )
        return self.stock[mx, "gather_qmm"](x, w, *arguments, **named)

    def gather_mm(self, a: Array, b: Array, /, lhs_indices: Any = None, rhs_indices: Any = None, **named: Any) -> Array:
        # Called by SwitchLinear with the weights' last dimensions swapped: swapping them back gives the rows as they lie in memory.
        is_covered = lhs_indices is None and _are_places(rhs_indices) and named.get("stream") is None
        if is_covered and _are_floats(a, b) and b.ndim == 3 and a.ndim >= 2 and a.shape[-2] == 1 and a.size:
            return _native.multiply_gathered(a, b.swapaxes(-1, -2), None, None, rhs_indices, 0, 0, fast=False)
        return self.stock[mx, "gather_mm"](a, b, lhs_indices, rhs_indices, **named)

    def linear(self, module: nn.Linear, x: Array) -> Array:
        weight = module["weight"]
        if not (_are_floats(x, weight) and weight.ndim == 2 and x.ndim and x.shape[-1] == weight.shape[-1] and x.size):
            return self.stock[nn.Linear, "__call__"](module, x)
        y = _native.multiply(x, weight, None, None, 0, 0, fast=False)
        return y + module["bias"] if "bias" in module else y

    def embedding(self, module: nn.Embedding, x: Array) -> Array:
        rows = module["weight"][x]
        return rows.astype(mx.float32) if rows.dtype in VALUES else rows

    def embedding_as_linear(self, module: nn.Embedding, x: Array) -> Array:
        return self.linear(module, x) if _are_floats(x, module["weight"]) else x @ module["weight"].T

    def quantized_embedding(self, module: nn.QuantizedEmbedding, x: Array) -> Array:
        """Rows in float32, whatever the type of the scales: rounded to half precision they would not be exact."""
        if module.mode != "affine":
            return self.stock[nn.QuantizedEmbedding, "__call__"](module, x)
        scales, biases = (module[name][x].astype(mx.float32) for name in ("scales", "biases"))
        return mx.dequantize(module["weight"][x], scales, biases, group_size=module.group_size, bits=module.bits)

    # -- rows --

    def rms_norm(self, x: Array, weight: Array | None, eps: float, *, stream: Any = None) -> Array:
        if stream is None and _are_rows(x) and _fits_row(x, weight):
            return _native.rms_norm(x, weight, eps)
        return self.stock[mx.fast, "rms_norm"](x, weight, eps, stream=stream)

    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, eps: float, *, stream: Any = None
    ) -> Array:
        if stream is None and _are_rows(x) and _fits_row(x, weight) and _fits_row(x, bias):
            return _native.layer_norm(x, weight, bias, eps)
        return self.stock[mx.fast, "layer_norm"](x, weight, bias, eps, stream=stream)

    def swiglu(self, gate: Array, x: Array) -> Array:
        if _are_rows(gate) and _are_rows(x) and gate.shape == x.shape:
            return _native.gate(gate, x, SILU)
        return self.stock[mlx_lm_activations, "swiglu"](gate, x)

    # -- attention --

    def rope(  # noqa: PLR0913  (as MLX has it)
        self,
        x: Array,
        dims: int,
        *,
        traditional: bool,
        base: float | None,
        scale: float,
        offset: int | Array,
        freqs: Array | None = None,
        stream: Any = None,
    ) -> Array:
        offsets = mx.array(offset, mx.int32) if isinstance(offset, int) else offset
        has_frequencies = freqs is None if base is not None else _is_vector(freqs, dims // 2)
        if stream is None and has_frequencies and _are_rows(x) and _is_rotation_covered(x, dims, offsets):
            frequencies = find_frequencies(dims, base, freqs)
            return _native.rotate(x, dims, traditional, frequencies, scale, offsets.astype(mx.int32))
        return self.stock[mx.fast, "rope"](
            x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs, stream=stream
        )

    def attention(
        self, q: Array, k: Array, v: Array, *, scale: float, mask: Any = None, sinks: Array | None = None, **named: Any
    ) -> Array:
        mask_array = None if mask is None or isinstance(mask, str) else mask
        has_sinks = sinks is None or _is_vector(sinks, q.shape[1] if q.ndim == 4 else 0)
        if not named and has_sinks and _is_attention_covered(q, k, v, mask, mask_array):
            return _native.attend(q, k, v, scale, mask == "causal" if mask_array is None else False, mask_array, sinks)
        return self.stock[mx.fast, "scaled_dot_product_attention"](
            q, k, v, scale=scale, mask=mask, sinks=sinks, **named
        )


class _Packed:
    """The arguments of mx.quantized_matmul."""

    def __init__(
        self,
        scales: Array,
        biases: Array | None = None,
        transpose: bool = True,  # noqa: FBT001, FBT002  (as MLX has it)
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        **others: Any,
    ) -> None:
        self.scales, self.biases, self.transpose = scales, biases, transpose
        self.group_size, self.bits, self.mode = group_size or 64, bits or 4, mode
        self.others = {name for name, value in others.items() if value is not None}

    def is_covered(self, x: Array, w: Array) -> bool:
        return (
            _are_arrays(x, w, self.scales, self.biases)
            and self.biases is not None
            and self.transpose
            and self.mode == "affine"
            and not self.others
            and self.group_size in GROUP_SIZES
            and self.bits in WIDTHS
            and x.dtype == mx.float32
            and w.dtype == mx.uint32
            and self.scales.dtype in VALUES
            and self.scales.dtype == self.biases.dtype
            and x.ndim > 0
            and x.shape[-1] * self.bits == w.shape[-1] * 32
            and self.scales.shape == self.biases.shape == (*w.shape[:-1], x.shape[-1] // self.group_size)
        )


class _Gathered(_Packed):
    """The arguments of mx.gather_qmm."""

    def __init__(  # noqa: PLR0913, PLR0917  (as MLX has it)
        self,
        scales: Array,
        biases: Array | None = None,
        lhs_indices: Array | None = None,
        rhs_indices: Array | None = None,
        transpose: bool = True,  # noqa: FBT001, FBT002  (as MLX has it)
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        global_scale: Array | None = None,
        *,
        sorted_indices: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(scales, biases, transpose, group_size, bits, mode, global_scale=global_scale, **others)
        self.lhs_indices, self.rhs_indices, self.sorted_indices = lhs_indices, rhs_indices, sorted_indices

    def takes_single_rows(self, x: Array) -> bool:
        return self.lhs_indices is None and _are_places(self.rhs_indices) and x.ndim >= 2 and x.shape[-2] == 1


def _as_method(compute: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
    """A function that a class binds to its instances, which a bound method is not."""

    def call(module: Any, x: Array) -> Array:
        return compute(module, x)

    return call


def find_kernels() -> Kernels | None:
    """The object in charge, if the kernels are in use in this process."""
    owner = getattr(mx.quantized_matmul, "__self__", None)
    return owner if isinstance(owner, Kernels) else None


@contextmanager
def taken_over(precision: str = "exact") -> Iterator[Kernels]:
    """The kernels in use for a while."""
    kernels = Kernels(is_fast=precision == "fast")
    kernels.take_over()
    try:
        yield kernels
    finally:
        kernels.give_back()


def find_stock(owner: Any, name: str) -> Any:
    """MLX's own function of that name, whoever is in charge."""
    kernels = find_kernels()
    return kernels.stock[owner, name] if kernels is not None else getattr(owner, name)


def _are_arrays(*values: Any) -> bool:
    return all(isinstance(value, mx.array) for value in values)


def _are_floats(x: Any, weight: Any) -> bool:
    return _are_arrays(x, weight) and x.dtype == mx.float32 and weight.dtype in VALUES


def _are_places(indices: Any) -> bool:
    return _are_arrays(indices) and mx.issubdtype(indices.dtype, mx.integer)


def _are_rows(x: Any) -> bool:
    return _are_arrays(x) and x.dtype == mx.float32 and x.ndim > 0 and x.size > 0


def _fits_row(x: Array, weight: Any) -> bool:
    return weight is None or (_are_arrays(weight) and weight.shape == x.shape[-1:] and weight.dtype in VALUES)


def _is_vector(values: Any, length: int) -> bool:
    return _are_arrays(values) and values.shape == (length,) and values.dtype in VALUES


def _is_rotation_covered(x: Array, dims: int, offsets: Any) -> bool:
    fits = _are_places(offsets) and (offsets.size == 1 or offsets.shape == x.shape[:1])
    return fits and x.ndim == 4 and 0 < dims <= x.shape[-1] and dims % 2 == 0


def _is_attention_covered(q: Array, k: Array, v: Array, mask: Any, mask_array: Array | None) -> bool:
    arrays = (q, k, v)
    lanes = _native.vector_floats()
    return (
        all(a.dtype == mx.float32 and a.ndim == 4 and a.size for a in arrays)
        and q.shape[-1] == k.shape[-1]
        and q.shape[-1] % lanes == 0
        and v.shape[-1] % lanes == 0
        and q.shape[0] == k.shape[0] == v.shape[0]
        and k.shape[1] == v.shape[1]
        and k.shape[2] == v.shape[2]
        and q.shape[1] % k.shape[1] == 0
        and (mask is None or mask_array is not None or (mask == "causal" and q.shape[2] <= k.shape[2]))
        and (mask_array is None or (mask_array.dtype in {mx.bool_, mx.float32} and mask_array.ndim <= 4))
    )
