"""Families whose layers hand on several tensors, as results and arguments of theirs."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from paceline_worker.model.families.handoff import Handoff, LayerCall


class FirstValues(Handoff):
    """RWKV-7: layer(x, v_first, cache) gives (x, v_first), the first layer's values."""

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        return list(call.args[:2])

    def answer(self, _call: LayerCall) -> Any:
        return tuple(self.received)


class ProjectedKeys(Handoff):
    """Hunyuan: layer(x, mask, cache, kv) gives (x, kv). Some layers take the keys and values that the one before projected."""

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        return [call.first, *(call.args[3] or (None, None))]

    def answer(self, _call: LayerCall) -> Any:
        x, keys, values = self.received
        return x, None if keys is None else (keys, values)


class EveryLayersInput(Handoff):
    """Talkie: layer(embedded, x, mask, cache) gives x; what the embedding gave goes into every layer."""

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        return [call.args[1], self.received[1] if self.received else call.args[0]]

    def prepare(self, layers: Sequence[nn.Module]) -> None:
        if not self.start:
            return
        for layer in layers[self.start : self.end]:
            own = type(layer)
            layer.__class__ = type(
                own.__name__, (own,), {"__call__": self._make_call(own), "__module__": own.__module__}
            )

    def _make_call(self, own: type[nn.Module]) -> Any:
        def call(layer: nn.Module, _embedded: mx.array, *args: Any) -> mx.array:
            return own.__call__(layer, self.received[1], *args)

        return call


class ResidualStream(Handoff):
    """Kimi K3: layer(x, mask=, cache=, blocks=) gives (x, blocks): results of earlier layers, which later ones mix in."""

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        blocks = call.named["blocks"]
        raw = None if blocks is None or blocks.raw is None else mx.moveaxis(blocks.raw, 0, 2)
        return [call.first, raw]

    def answer(self, call: LayerCall) -> Any:
        x, raw = self.received
        blocks = call.named["blocks"]
        if raw is not None and blocks.raw is None:
            for index in range(raw.shape[2]):
                blocks.append(raw[:, :, index])
        return x, blocks


class Eager(Handoff):
    """DBRX: experts are chosen by values that are looked at."""

    computes_eagerly = True
