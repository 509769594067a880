"""What goes from one layer to the next across a cut: by default one tensor, the layer's first input and its result.

Families whose layers take and give more have a Handoff of their own beside this file. All of it is packed into the one activation that
a frame carries, [batch, tokens, width].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

Cache = Any


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A call of layer `index` by the model's own loop, with the caches of the whole model as this stage knows them."""

    index: int
    args: Sequence[Any]
    named: Mapping[str, Any]
    caches: Sequence[Cache]

    @property
    def hidden(self) -> mx.array:
        """The layer's main input: its first argument in every family."""
        return self.args[0] if self.args else next(iter(self.named.values()))


class Handoff:
    """One stage's ways in and out. trunk: the module whose loop calls the layers; start, end: the stage's layers."""

    computes_eagerly = False
    """Whether layers look at values while they are called, so that they must not be called before their weights are read."""

    def __init__(self, trunk: nn.Module, start: int, end: int) -> None:
        self.trunk = trunk
        self.start = start
        self.end = end
        self.activation = mx.zeros((1, 1, 1))

    def receive(self, activation: mx.array) -> None:
        """Take in what the stage before packed; the calls of the layers before `start` follow."""
        self.activation = activation

    def answer(self, _call: LayerCall) -> Any:
        """What the loop gets from a layer before `start`. Only what it gets from the last of them is used."""
        return self.activation

    def pack(self, call: LayerCall) -> mx.array:
        """What the layer after `end` was called with, for the stage that holds it: [batch, tokens, width]."""
        return call.hidden

    def get_width(self, call: LayerCall) -> int:
        """Of the activation that enters this stage, as seen in the whole model's call of layer `start`."""
        return int(call.hidden.shape[-1])

    def list_cached_layers(self) -> frozenset[int]:
        """Layers of other stages whose caches this stage keeps too."""
        return frozenset()
