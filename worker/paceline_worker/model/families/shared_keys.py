"""Families whose last layers have no keys and values of their own: they read those that earlier layers, their owners, computed.

Where a cut lies between, the stage after it keeps a cache for each owner too. The new tokens' keys and values travel with the activation
and are put into it when the owner's turn comes, as they were on the owner's stage.
"""

from typing import Any

import mlx.core as mx
from mlx import nn

from paceline_services.errors import ConfigurationError
from paceline_worker.model.families.handoff import Cache, Handoff, LayerCall


class SharedKeys(Handoff):
    """AFM: the layers after the last one with a cache get that one's keys and values from the loop."""

    def find_owner(self, layer: int) -> int | None:
        """The layer whose keys and values another one reads; None where it has its own."""
        last = len(self.trunk["layers"]) - 1
        return last if layer > last else None

    def count_layers(self) -> int:
        return len(self.trunk["layers"]) + len(self.trunk["kv_reuse_layers"])

    def list_owners(self, boundary: int) -> list[int]:
        """Layers before a boundary that layers after it read from."""
        owners = {self.find_owner(layer) for layer in range(boundary, self.count_layers())}
        return sorted(owner for owner in owners if owner is not None and owner < boundary)

    def list_cached_layers(self) -> frozenset[int]:
        return frozenset(self.list_owners(self.start))

    def list_streams(self, call: LayerCall) -> list[mx.array | None]:
        """What goes from layer to layer beside keys and values."""
        return [call.first]

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        streams = self.list_streams(call)
        num_tokens = next(one.shape[1] for one in streams if one is not None)
        owners = self.list_owners(call.index)
        return [*streams, *(one for owner in owners for one in take_newest(call.caches[owner], num_tokens))]

    def answer(self, call: LayerCall) -> Any:
        self.put_in(call)
        return self.received[0]

    def put_in(self, call: LayerCall) -> tuple[mx.array, mx.array] | None:
        """Where the layer called is an owner, the keys and values that its cache has now, [batch, heads, tokens, dim]."""
        owners = self.list_owners(self.start)
        if call.index not in owners:
            return None
        first = len(self.received) - 2 * (len(owners) - owners.index(call.index))
        keys, values = (one.swapaxes(1, 2) for one in self.received[first : first + 2] if one is not None)
        fetched: tuple[mx.array, mx.array] = call.caches[call.index].update_and_fetch(keys, values)
        return fetched


class PerLayerInputs(SharedKeys):
    """Gemma 3n and 4: what each layer gets of its own, made of token ids and embedding before the first layer, travels as well.

    projection: name of the trunk's method that makes it, [batch, tokens, layers, dim].
    """

    projection = ""

    def __init__(self, trunk: nn.Module, start: int, end: int) -> None:
        super().__init__(trunk, start, end)
        self._own = getattr(trunk, self.projection)
        self._made: mx.array | None = None
        object.__setattr__(trunk, self.projection, self._project)

    def _project(self, *args: Any) -> mx.array:
        carried = self.received[1] if self.received else None
        if carried is None:
            self._made = self._own(*args)
        else:
            self._made = mx.pad(carried, [(0, 0), (0, 0), (self.start, 0), (0, 0)])
        return self._made

    def take_made(self, boundary: int) -> mx.array | None:
        """The inputs of the layers after a boundary."""
        return None if self._made is None else self._made[:, :, boundary:]

    def count_layers(self) -> int:
        return len(self.trunk["layers"])


class StackedStreams(PerLayerInputs):
    """Gemma 3n: layer(x, mask, cache, per_layer_input, offset=) gives x, several streams [streams, batch, tokens, hidden]."""

    projection = "project_per_layer_inputs"

    def find_owner(self, layer: int) -> int | None:
        owner = int(self.trunk.layer_idx_to_cache_idx[layer])
        return None if owner == layer else owner

    def list_streams(self, call: LayerCall) -> list[mx.array | None]:
        return [mx.moveaxis(call.first, 0, 2), self.take_made(call.index)]

    def answer(self, call: LayerCall) -> Any:
        self.put_in(call)
        return None if self.received[0] is None else mx.moveaxis(self.received[0], 2, 0)


class HandedKeys(PerLayerInputs):
    """Gemma 4: layer(x, mask, cache, per_layer_input=, shared_kv=, offset=) gives (x, keys and values, offset)."""

    projection = "_project_per_layer_inputs"

    def find_owner(self, layer: int) -> int | None:
        owner = int(self.trunk.previous_kvs[layer])
        return None if owner == layer else owner

    def list_streams(self, call: LayerCall) -> list[mx.array | None]:
        return [call.first, self.take_made(call.index)]

    def answer(self, call: LayerCall) -> Any:
        cache = call.caches[call.index] if call.index < len(call.caches) else None
        offset = None if cache is None else mx.array(cache.offset)
        return self.received[0], self.put_in(call), offset


def take_newest(cache: Cache, num_tokens: int) -> tuple[mx.array, mx.array]:
    """Keys and values of the tokens that came last, each [batch, tokens, heads, dim].

    Raises ConfigurationError where the cache keeps them packed.
    """
    if not isinstance(cache.keys, mx.array):
        raise ConfigurationError(
            "keys and values that layers share cannot be quantised in more than one stage; place the model without --kv-bits"
        )
    end = getattr(cache, "_idx", cache.offset)  # a sliding window is written in a ring
    keys, values = (one[..., end - num_tokens : end, :].swapaxes(1, 2) for one in (cache.keys, cache.values))
    return keys, values
