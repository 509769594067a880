"""How a model of any family is built, found out by watching one forward of it.

mlx-lm's families name their parts as they like, and do as they like before their first layer and after their last. What a division must
know is the same of all: where the layers are, which other parts are used before and after them, which KV caches a layer is given. MLX is
lazy: a forward of three tokens only builds a graph, and no weight is read as long as nobody evaluates it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList, make_prompt_cache

from paceline_services.errors import ConfigurationError
from paceline_worker.model.families.handoff import Handoff, LayerCall

Cache = Any
EXAMPLE = (0, 1, 2)


class Phase(Flag):
    """When a part is used: before the first layer, between layers, after the last one."""

    BEFORE = auto()
    AMONG = auto()
    AFTER = auto()


@dataclass(frozen=True, slots=True)
class ModelPart:
    """What is no layer and holds weights: owner[key]. phase: when it is used; none of them where it never was."""

    owner: nn.Module
    key: str
    phase: Phase


@dataclass(frozen=True, slots=True)
class Anatomy:
    """layers and, in the order of their first use, all other parts; given: for each layer the indices of the caches it is given."""

    layers: tuple[nn.Module, ...]
    parts: tuple[ModelPart, ...]
    given: tuple[frozenset[int], ...]

    def list_caches(self, layers: Iterable[int]) -> frozenset[int]:
        """Those, as indices of the model's caches, that any of these layers is given."""
        return frozenset().union(*(self.given[layer] for layer in layers))


class NotInOrderError(Exception):
    """The layers are not called one after another, each of them once."""


def find_layers(model: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The module that has the list of layers, and the layers.

    Raises ConfigurationError where mlx-lm's model does not say which they are.
    """
    layers = tuple(getattr(model, "layers", ()))
    for _, module in model.named_modules():
        for value in module.values():
            if isinstance(value, list) and layers and any(one is layers[0] for one in value):
                return module, layers
    raise ConfigurationError(f"{type(model).__module__} has no list of layers")


def examine(model: nn.Module, handoff: Handoff) -> Anatomy:
    """Watch a forward, and let the handoff see what enters its stage.

    Raises NotInOrderError, and whatever the model raises.
    """
    _, layers = find_layers(model)
    spine = list(_find_spine(model, layers))
    caches = make_prompt_cache(model)
    watch = _Watch(caches, handoff)
    with watch.on_layers(layers), watch.on_parts(spine):
        model(mx.array([EXAMPLE]), cache=caches)
    if [index for index, _ in watch.calls] != list(range(len(layers))):
        raise NotInOrderError
    return Anatomy(layers, tuple(_list_parts(spine, layers, watch)), tuple(given for _, given in watch.calls))


def find_given(call: LayerCall) -> frozenset[int]:
    """The indices of the caches that a layer was given."""
    given = [*call.args, *call.named.values()]
    return frozenset(
        index
        for index, cache in enumerate(call.caches)
        if any(one is part for one in given for part in list_cache_parts(cache))
    )


def list_cache_parts(cache: Cache) -> list[Cache]:
    """A cache and those that it consists of."""
    parts = cache.caches if isinstance(cache, CacheList) else ()
    return [cache, *parts]


def holds_weights(value: Any) -> bool:
    """Whether a module, an array or a list of them is or contains an array."""
    return any(isinstance(leaf, mx.array) for _, leaf in tree_flatten(value))


class _Watch:
    """Notes which parts are used when, and how layers are called."""

    def __init__(self, caches: Sequence[Cache], handoff: Handoff) -> None:
        self._caches = caches
        self._handoff = handoff
        self.calls: list[tuple[int, frozenset[int]]] = []
        """Of layers: which one, and the caches that it was given."""
        self.uses: list[tuple[int, str, int]] = []
        """Of a part: its owner's identity, its key, and how many layers had been called."""

    @contextmanager
    def on_layers(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        with _changed_classes([(layer, {"__call__": self._make_call(layer, i)}) for i, layer in enumerate(layers)]):
            yield

    @contextmanager
    def on_parts(self, owners: Sequence[nn.Module]) -> Iterator[None]:
        with _changed_classes([(owner, {"__getattr__": self._make_getattr(type(owner))}) for owner in owners]):
            yield

    def _make_call(self, layer: nn.Module, index: int) -> Any:
        own = type(layer)

        def call(module: Any, *args: Any, **named: Any) -> Any:
            seen = LayerCall(index, args, named, self._caches)
            self.calls.append((index, find_given(seen)))
            self._handoff.watch(seen)
            return seen.first if self._handoff.computes_eagerly else own.__call__(module, *args, **named)

        return call

    def _make_getattr(self, own: type[nn.Module]) -> Any:
        def getattribute(module: Any, name: str) -> Any:
            self.uses.append((id(module), name, len(self.calls)))
            return own.__getattr__(module, name)

        return getattribute


@contextmanager
def _changed_classes(changes: Sequence[tuple[nn.Module, dict[str, Any]]]) -> Iterator[None]:
    owns = [type(module) for module, _ in changes]
    for (module, members), own in zip(changes, owns, strict=True):
        module.__class__ = type(own.__name__, (own,), {**members, "__module__": own.__module__})
    try:
        yield
    finally:
        for (module, _), own in zip(changes, owns, strict=True):
            module.__class__ = own


def _find_spine(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The modules that layers are inside of, the model among them."""
    ids = {id(layer) for layer in layers}
    names = {id(module): name for name, module in model.named_modules()}
    inside = [names[one] for one in ids]
    for name, module in model.named_modules():
        if id(module) not in ids and any(not name or one.startswith(f"{name}.") for one in inside):
            yield module


def _list_parts(spine: Sequence[nn.Module], layers: Sequence[nn.Module], watch: _Watch) -> Iterator[ModelPart]:
    first_use = {(owner, key): place for place, (owner, key, _) in reversed(list(enumerate(watch.uses)))}
    passed = {id(module) for module in (*spine, *layers)}
    found = [
        (owner, key)
        for owner in spine
        for key, value in owner.items()
        if holds_weights(value) and not _contains(value, passed)
    ]
    for owner, key in sorted(found, key=lambda one: first_use.get((id(one[0]), one[1]), len(watch.uses))):
        counts = {count for used, name, count in watch.uses if (used, name) == (id(owner), key)}
        phases = (_find_phase(count, len(layers)) for count in counts)
        yield ModelPart(owner, key, sum_phases(phases))


def sum_phases(phases: Iterator[Phase]) -> Phase:
    total = Phase(0)
    for phase in phases:
        total |= phase
    return total


def _find_phase(num_called: int, num_layers: int) -> Phase:
    if num_called == 0:
        return Phase.BEFORE
    return Phase.AFTER if num_called == num_layers else Phase.AMONG


def _contains(value: Any, modules: set[int]) -> bool:
    """Whether a module's value is one of these modules, or a list that has one."""
    return any(id(one) in modules for one in (value if isinstance(value, list) else [value]))
