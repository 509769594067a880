"""Joins the steps of a transformer layer into one operation, where that is shown to give what the layer itself gives.

mlx-lm's layers stay what they are; a layer whose parts have the usual names gets a subclass of its own class, whose call takes the
short way when its arguments allow (one plain KV cache, causal or no mask; or what stands for the plain KV caches of several sequences)
and the layer's own way otherwise. Nothing is assumed of a layer from its names: before it is changed, both ways are run on random
input, prompt and next token, then two sequences at once, and must agree. Layers that follow each other may then be computed together
(runs.py).

Under tensor parallelism the last projection of a half, attention's or the MLP's, holds a part of its inputs on every rank and has the
ranks' group (its attribute `group`). Joined, the halves sum their results over it themselves. Trying a layer out exchanges sums too, so
the ranks agree on every step of it before they take it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import Llama3RoPE

from paceline_kernels import _native
from paceline_kernels.ranks import Group, find_group, group_of, holds_everywhere
from paceline_kernels.rotation import find_frequencies
from paceline_kernels.runs import LayerRun, Place, TrialCache, put_together
from paceline_kernels.takeover import SILU, VALUES, find_kernels, taken_over

GATES = {"silu": SILU, "gelu_tanh": 1, "gelu": 2}
PROMPT_TOKENS, TOLERANCE = 5, 2e-5
Array = mx.array


class UnknownLayerError(Exception):
    """The layer is not of the kind that can be joined; its message says why."""


@dataclass(frozen=True, slots=True)
class JoinedLayer:
    """The halves of one layer: attention with its norm and residual, and the MLP with its own; None where it stays the layer's own.

    takes_segments: shown to give for several sequences at once what the layer gives for each alone.
    """

    attention: Any
    mlp: Any
    takes_segments: bool = False

    def takes(self, x: Array, mask: Any, cache: Any) -> bool:
        """Whether the short way computes this call."""
        if x.dtype != mx.float32 or x.ndim != 3 or x.size == 0:
            return False
        batch, tokens, _ = x.shape
        if type(cache) is KVCache:
            is_causal = isinstance(mask, str) and mask == "causal"
            return (is_causal or (mask is None and tokens == 1)) and _native.are_plain([cache], KVCache, batch)
        segments = getattr(cache, "segments", None)
        if segments is None or not self.takes_segments or tokens != 1:
            return False
        is_whole = sum(segment.num_tokens for segment in segments) == batch
        return is_whole and _native.are_plain([segment.cache for segment in segments], KVCache, 1)


def join_layers(layers: Sequence[nn.Module]) -> int:
    """Join the steps of those layers (loaded and evaluated) that can be; returns how many. The kernels must be in use."""
    kernels = find_kernels()
    if kernels is None:
        return 0
    group = find_group(layers)
    with taken_over("exact"):  # both ways are compared with exact products
        joined = [_join_layer(layer, group, is_fast=kernels.is_fast) for layer in layers]
    kernels.take_over()
    return sum(joined)


def _join_layer(layer: nn.Module, group: Group | None, *, is_fast: bool) -> bool:
    try:
        exact = list_joins(layer, is_fast=False)
        gate = find_gate(layer, exact, group)
        takes_segments = holds_everywhere(is_right_with_segments(layer, exact[gate]), group)
    except (UnknownLayerError, ValueError):
        return False
    joined = list_joins(layer, is_fast=True)[gate] if is_fast else exact[gate]
    layer.__class__ = make_joined_class(type(layer))
    object.__setattr__(layer, "joined", replace(joined, takes_segments=takes_segments))
    put_together([layer])
    return True


def list_joins(layer: nn.Module, *, is_fast: bool) -> dict[str | None, JoinedLayer]:
    """What the layer can be joined to, by the gate that its MLP would have; None: the MLP stays the layer's own. Computes nothing."""
    joins: dict[str | None, JoinedLayer] = {}
    for gate in (*GATES, None):
        with suppress(UnknownLayerError, ValueError):
            joins[gate] = join(layer, describe_attention(layer), gate, is_fast=is_fast)
    return joins


@dataclass(frozen=True, slots=True)
class Attention:
    """What a layer's attention consists of."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    frequencies: Array
    rope_scale: float
    is_traditional: bool


def describe_attention(layer: nn.Module) -> Attention:
    """Raises UnknownLayerError when a part is missing or of an unknown kind."""
    module = _part(layer, "self_attn", nn.Module)
    _part(layer, "mlp", nn.Module)
    for name in ("input_layernorm", "post_attention_layernorm"):
        _part(layer, name, nn.RMSNorm)
    num_heads = _number(module, "n_heads", "num_attention_heads", "num_heads")
    num_kv_heads = _number(module, "n_kv_heads", "num_key_value_heads", "num_kv_heads")
    rope = module.get("rope")
    if type(rope) is nn.RoPE:
        frequencies = find_frequencies(rope.dims, rope.base, None)
        rope_scale, is_traditional = rope.scale, rope.traditional
    elif type(rope) is Llama3RoPE:
        frequencies = find_frequencies(rope.dims, None, rope._freqs)
        rope_scale, is_traditional = 1.0, rope.traditional
    else:
        raise UnknownLayerError("its position embedding is of another kind")
    rows = _part(module, "k_proj", nn.Module)["weight"].shape[0]
    scale = getattr(module, "scale", None)
    if not isinstance(scale, float):
        raise UnknownLayerError("its attention has no scale")
    return Attention(
        num_heads, num_kv_heads, rows // num_kv_heads, scale, frequencies, float(rope_scale), bool(is_traditional)
    )


def find_gate(layer: nn.Module, joins: Mapping[str | None, JoinedLayer], group: Group | None) -> str | None:
    """Which of the joins gives what the layer gives; None: the one whose MLP stays the layer's own.

    Raises UnknownLayerError when no one does, on all ranks of the group if on one.
    """
    expected: list[Array] = []
    for gate in (*GATES, None):
        if not holds_everywhere(gate in joins, group):
            continue
        expected = expected or run_layer(layer, layer)
        if holds_everywhere(are_close(run_layer(make_short_way(layer, joins[gate]), layer), expected), group):
            return gate
    raise UnknownLayerError("it computes something else")


def is_right_with_segments(layer: nn.Module, joined: JoinedLayer) -> bool:
    """Whether a sequence's next token and another's start, computed at once, are what the layer gives for each sequence alone."""
    prompt, token = make_input(layer, PROMPT_TOKENS - 2), make_input(layer, 1)
    cache = KVCache()
    start, following = layer(prompt, "causal", cache), layer(token, None, cache)
    mx.eval(start, following)
    cache.trim(1)
    rows = mx.concatenate([token, prompt], axis=1).swapaxes(0, 1)
    segments = TrialCache.make((cache, 1), (KVCache(), prompt.shape[1]))
    together = make_short_way(layer, joined)(rows, None, segments).swapaxes(0, 1)
    return are_close([together[:, :1], together[:, 1:]], [following, start])


def make_short_way(layer: nn.Module, joined: JoinedLayer) -> Any:
    """The call of a layer that is not changed yet, the short way."""
    return partial(call_joined, layer, joined, Place(LayerRun([joined]), 0))


def join(layer: nn.Module, attention: Attention, gate: str | None, *, is_fast: bool) -> JoinedLayer:
    """The halves of a layer. Raises ValueError when shapes or packings do not fit the kernels."""
    module, mlp = layer["self_attn"], layer["mlp"]
    half = _native.make_attention_half(
        norm=_norm(layer["input_layernorm"]),
        qkv=[_matrix(module[name]) for name in ("q_proj", "k_proj", "v_proj")],
        output=_matrix(_part(module, "o_proj", nn.Module)),
        query_norm=_norm(module["q_norm"]) if "q_norm" in module else None,
        key_norm=_norm(module["k_norm"]) if "k_norm" in module else None,
        heads=attention.num_heads,
        kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        scale=attention.scale,
        frequencies=attention.frequencies,
        rope_scale=attention.rope_scale,
        is_traditional=attention.is_traditional,
        fast=is_fast,
        group=group_of(module["o_proj"]),
    )
    mlp_half = None
    if gate is not None:
        _check_mlp(mlp)
        parts = {name: _matrix(mlp[f"{name}_proj"]) for name in ("gate", "up", "down")}
        mlp_half = _native.make_mlp_half(
            norm=_norm(layer["post_attention_layernorm"]),
            **parts,
            kind=GATES[gate],
            fast=is_fast,
            group=group_of(mlp["down_proj"]),
        )
    return JoinedLayer(half, mlp_half)


def call_joined(layer: nn.Module, joined: JoinedLayer, place: Place, x: Array, _mask: Any, cache: Any) -> Array:
    """The layer's result the short way, [batch, tokens, hidden], for a mask that it takes; x itself where the run computes it later."""
    h = place.run.take(place.position, x, cache)
    return h if joined.mlp is not None else h + layer["mlp"](layer["post_attention_layernorm"](h))


def make_joined_class(own: type[nn.Module]) -> type[nn.Module]:
    """The layer's class with the short way."""

    def call(layer: Any, x: Array, mask: Any = None, cache: Any = None, **others: Any) -> Any:
        if others or not layer.joined.takes(x, mask, cache):
            return own.__call__(layer, layer.place.run.finish(x), mask, cache, **others)
        return call_joined(layer, layer.joined, layer.place, x, mask, cache)

    return type(f"Joined{own.__name__}", (own,), {"__call__": call, "__module__": own.__module__})


def run_layer(call: Any, layer: nn.Module) -> list[Array]:
    """What a call gives for a short prompt and the token after it, from one random input."""
    prompt, token = make_input(layer, PROMPT_TOKENS), make_input(layer, 1)
    cache = KVCache()
    outputs = [call(prompt, "causal", cache), call(token, None, cache)]
    mx.eval(outputs)
    return outputs


def make_input(layer: nn.Module, tokens: int) -> Array:
    return mx.random.normal((1, tokens, layer["input_layernorm"]["weight"].shape[0]), key=mx.random.key(tokens))


def are_close(ours: Sequence[Array], expected: Sequence[Array]) -> bool:
    return all(
        bool((mx.max(mx.abs(one - other)) <= TOLERANCE * mx.max(mx.abs(other))).item())
        for one, other in zip(ours, expected, strict=True)
    )


def _check_mlp(mlp: nn.Module) -> None:
    if set(mlp.children()) != {"gate_proj", "up_proj", "down_proj"}:
        raise UnknownLayerError("its MLP has other parts")


def _part(module: nn.Module, name: str, kind: type) -> Any:
    part = module.get(name)
    if not isinstance(part, kind):
        raise UnknownLayerError(f"it has no {name}")
    return part


def _number(module: nn.Module, *names: str) -> int:
    for name in names:
        if isinstance(value := getattr(module, name, None), int):
            return value
    raise UnknownLayerError(f"it has no {names[0]}")


def _norm(module: nn.RMSNorm) -> Any:
    if type(module) is not nn.RMSNorm:
        raise UnknownLayerError("a norm is of another kind")
    return _native.Norm(module["weight"], module.eps)


def _matrix(module: nn.Module) -> Any:
    if _is_kind(module, nn.QuantizedLinear) and module.mode == "affine":
        packing = {"group_size": module.group_size, "bits": module.bits}
        return _native.Matrix(module["weight"], module["scales"], module["biases"], module.get("bias"), **packing)
    if _is_kind(module, nn.Linear) and module["weight"].dtype in VALUES:
        return _native.Matrix(module["weight"], None, None, module.get("bias"), group_size=0, bits=0)
    raise UnknownLayerError("a projection is of another kind")


def _is_kind(module: nn.Module, kind: type) -> bool:
    """Whether it is that linear layer itself, or the one whose results are summed over a group."""
    return type(module) is kind or (isinstance(module, kind) and group_of(module) is not None)
