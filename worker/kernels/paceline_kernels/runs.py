"""Layers that follow each other, computed in one operation: 30 layers cost one way through Python and MLX's graph instead of 30.

A model's loop over its layers stays mlx-lm's. While it runs, a layer of a run only notes its cache and hands its input on; the last one
computes them all. That the loop does nothing to the activation between the layers is not assumed: before layers are put together, the
trunk is run both ways, and the results must be equal to the last bit.

A layer's cache is a KVCache, for inputs [batch, tokens, hidden], or stands for the KVCaches of several sequences (Segmented), for inputs
[tokens of all, 1, hidden]. Keys and values are written in place where nobody but the cache holds them. Who else holds them (a saved
state, a fork, a view) keeps what they were, as with every array of MLX's: the cache gets buffers of its own with the next token. They
may be read at any time; what is not computed yet then is. A call waits for the one before it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache

from paceline_kernels import _native
from paceline_kernels.ranks import find_group, holds_everywhere

Array = mx.array
Runner = Callable[[Array, Sequence[Any]], Array]
"""Runs a trunk: an input and a cache for each layer to its result."""
Entry = list[tuple[KVCache, int]]
"""The caches of one layer in a call, and how many tokens each of them gets."""


class Segment(Protocol):
    """A sequence's part of an input: the next tokens of one cache."""

    @property
    def cache(self) -> Any: ...
    @property
    def num_tokens(self) -> int: ...


class Segmented(Protocol):
    """What stands for the caches of several sequences in one layer: their tokens, in this order, are the input [tokens, 1, hidden]."""

    @property
    def segments(self) -> Sequence[Segment]: ...


class LayerRun:
    """The joined layers of a run, and the caches of those that wait for the others. Not to be used by two threads at once."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = _native.make_layer_run([(layer.attention, layer.mlp) for layer in layers])
        self._last = len(layers) - 1
        self._is_open = False
        self._first = 0
        self._waiting: list[Entry] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """While this is open, layers wait for those that follow them. Forgets what an interrupted call left."""
        self._waiting, self._is_open = [], True
        try:
            yield
        finally:
            self._waiting, self._is_open = [], False

    def take(self, position: int, x: Array, cache: KVCache | Segmented) -> Array:
        """One layer's call, x [batch, tokens, hidden]: its result, or x itself when layers that follow compute it with theirs."""
        if self._waiting and position != self._first + len(self._waiting):
            x = self.finish(x)
        if not self._waiting:
            self._first = position
        self._waiting.append(list_caches(x, cache))
        return x if self._is_open and position < self._last else self.finish(x)

    def finish(self, x: Array) -> Array:
        """The result of the layers that wait; their caches grow as KVCache.update_and_fetch makes them grow."""
        if not self._waiting:
            return x
        entries, self._waiting = self._waiting, []
        return self._layers.apply(x, self._first, entries)


def list_caches(x: Array, cache: KVCache | Segmented) -> Entry:
    """The caches that a layer's input is for."""
    if isinstance(cache, KVCache):
        return [(cache, x.shape[1])]
    return [(segment.cache, segment.num_tokens) for segment in cache.segments]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer is: its run and its position there."""

    run: LayerRun
    position: int


def join_runs(trunk: nn.Module, run: Runner, example: Array) -> int:
    """Put the joined layers of a trunk that follow each other into runs; returns how many runs. example: an input of run."""
    runs = [layers for layers in find_runs(trunk["layers"]) if len(layers) > 1]
    if not runs:
        return 0
    group, num_layers = find_group(trunk["layers"]), len(trunk["layers"])
    expected = run_alone_and_together(run, num_layers, example)
    if not holds_everywhere(expected is not None, group):
        return 0
    own = type(trunk)
    trunk.__class__ = make_open_class(own, [put_together(layers) for layers in runs])
    if holds_everywhere(are_equal(run_alone_and_together(run, num_layers, example), expected), group):
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
        if not is_whole:
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


def run_alone_and_together(run: Runner, num_layers: int, example: Array) -> list[Array] | None:
    """What running the trunk gives for an input, for its first token after it, and for two sequences at once, where that can be.

    None when it cannot be run with plain KV caches.
    """
    caches, others = ([KVCache() for _ in range(num_layers)] for _ in range(2))
    outputs = run_calls(run, [(example, caches), (example[:, :1], caches)])
    if outputs is None:
        return None
    together = mx.concatenate([example[:, :1], example], axis=1).swapaxes(0, 1)
    parts = [TrialCache.make((one, 1), (other, example.shape[1])) for one, other in zip(caches, others, strict=True)]
    return [*outputs, *(run_calls(run, [(together, parts)]) or [])]


def run_calls(run: Runner, calls: Sequence[tuple[Array, Sequence[Any]]]) -> list[Array] | None:
    try:
        outputs = [run(inputs, caches) for inputs, caches in calls]
        mx.eval(outputs)
    except (AttributeError, TypeError, ValueError, IndexError):
        return None
    return outputs


@dataclass(frozen=True, slots=True)
class TrialSegment:
    cache: KVCache
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TrialCache:
    """A Segmented to compare with; layers that go their own way can't do anything with it."""

    segments: tuple[TrialSegment, ...]

    @classmethod
    def make(cls, *segments: tuple[KVCache, int]) -> "TrialCache":
        return cls(tuple(TrialSegment(*segment) for segment in segments))

    def make_mask(self, *_: Any, **__: Any) -> str:
        return "segments"


def are_equal(ours: Sequence[Array] | None, expected: Sequence[Array] | None) -> bool:
    return (
        ours is not None
        and expected is not None
        and len(ours) == len(expected)
        and all(
            bool(mx.array_equal(one, other, equal_nan=True).item()) for one, other in zip(ours, expected, strict=True)
        )
    )
