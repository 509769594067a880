"""Layers that follow each other, computed in one operation: 30 layers cost one way through Python and MLX's graph instead of 30.

A model's loop over its layers stays mlx-lm's. While it runs, a layer of a run only notes its cache and hands its input on; the last one
computes them all. That the loop does nothing to the activation between the layers is not assumed: before layers are put together, the
trunk is run both ways, and the results must be equal to the last bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache

from paceline_kernels import _native

MAX_LAYERS = 8
"""Of one run: MLX links every output of an operation with every other, so that what keys and values cost grows with the square."""

Array = mx.array


class LayerRun:
    """The joined layers of a run, and the caches of those that wait for the others. Not to be used by two threads at once."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = _native.make_layer_run([(layer.attention, layer.mlp) for layer in layers])
        self._last = len(layers) - 1
        self._is_open = False
        self._first = 0
        self._waiting: list[KVCache] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """While this is open, layers wait for those that follow them. Forgets what an interrupted call left."""
        self._waiting, self._is_open = [], True
        try:
            yield
        finally:
            self._waiting, self._is_open = [], False

    def take(self, position: int, x: Array, cache: KVCache) -> Array:
        """One layer's call, x [batch, tokens, hidden]: its result, or x itself when layers that follow compute it with theirs."""
        if self._waiting and position != self._first + len(self._waiting):
            x = self.finish(x)
        if not self._waiting:
            self._first = position
        self._waiting.append(cache)
        return x if self._is_open and position < self._last else self.finish(x)

    def finish(self, x: Array) -> Array:
        """The result of the layers that wait; their caches grow as KVCache.update_and_fetch makes them grow."""
        if not self._waiting:
            return x
        caches, self._waiting = self._waiting, []
        tokens = x.shape[1]
        y, *buffers = self._layers.apply(
            x, self._first, [(cache.keys, cache.values, cache.offset, find_capacity(cache, tokens)) for cache in caches]
        )
        # The caches let go of their buffers before anything is computed: those that nobody else holds are written in place.
        for index, cache in enumerate(caches):
            cache.keys, cache.values = buffers[2 * index : 2 * index + 2]
            cache.offset += tokens
        return y


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer is: its run and its position there."""

    run: LayerRun
    position: int


def find_capacity(cache: KVCache, tokens: int) -> int:
    """Tokens that the cache's buffers hold after so many more were written: whole steps more than now, where they must grow."""
    capacity = cache.keys.shape[2] if cache.keys is not None else 0
    needed: int = cache.offset + tokens
    if needed <= capacity:
        return int(capacity)
    return int(cache.offset + (tokens + cache.step - 1) // cache.step * cache.step)


def join_runs(trunk: nn.Module, example: Array) -> int:
    """Put the joined layers of a trunk that follow each other into runs; returns how many runs. example: an input of the trunk."""
    runs = [run for run in find_runs(trunk["layers"]) if len(run) > 1]
    if not runs:
        return 0
    expected = run_trunk(trunk, example)
    if expected is None:
        return 0
    own = type(trunk)
    trunk.__class__ = make_open_class(own, [put_together(layers) for layers in runs])
    if are_equal(run_trunk(trunk, example), expected):
        return len(runs)
    trunk.__class__ = own
    for layers in runs:
        for layer in layers:
            put_together([layer])
    return 0


def find_runs(layers: Sequence[nn.Module]) -> list[list[Any]]:
    """Layers side by side that are joined as a whole."""
    runs: list[list[Any]] = [[]]
    for layer in layers:
        joined = vars(layer).get("joined")
        is_whole = joined is not None and joined.mlp is not None
        if not is_whole or len(runs[-1]) == MAX_LAYERS:
            runs.append([])
        if is_whole:
            runs[-1].append(layer)
    return runs


def put_together(layers: Sequence[Any]) -> LayerRun:
    """Make joined layers a run, each with its place in it."""
    run = LayerRun([layer.joined for layer in layers])
    for position, layer in enumerate(layers):
        object.__setattr__(layer, "place", Place(run, position))
    return run


def make_open_class(own: type[nn.Module], runs: Sequence[LayerRun]) -> type[nn.Module]:
    """The trunk's class, whose calls open the runs."""

    def call(trunk: Any, *args: Any, **named: Any) -> Any:
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.open())
            return own.__call__(trunk, *args, **named)

    return type(f"Joined{own.__name__}", (own,), {"__call__": call, "__module__": own.__module__})


def run_trunk(trunk: nn.Module, example: Array) -> list[Array] | None:
    """What the trunk gives for an input and for its first token after it; None when it cannot be run with plain KV caches."""
    caches = [KVCache() for _ in trunk["layers"]]
    try:
        outputs = [trunk(example, cache=caches), trunk(example[:, :1], cache=caches)]
        mx.eval(outputs)
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return outputs


def are_equal(ours: Sequence[Array] | None, expected: Sequence[Array]) -> bool:
    return ours is not None and all(
        bool(mx.array_equal(one, other, equal_nan=True).item()) for one, other in zip(ours, expected, strict=True)
    )
