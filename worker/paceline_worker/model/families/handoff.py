"""What goes from one layer to the next across a cut: by default one tensor, the layer's first input and its result.

Families whose layers take and give more have a Handoff of their own beside this file. Whatever goes is packed into the one activation
that a frame carries, [batch, tokens, width].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
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
    def first(self) -> Any:
        return self.args[0] if self.args else next(iter(self.named.values()))


class Handoff:
    """One stage's ways in and out. trunk: the module whose loop calls the layers; start, end: the stage's layers."""

    computes_eagerly = False
    """Whether layers look at values while they are called, so that they must not be called before their weights are read.

    They must have one tensor as input and result then.
    """

    def __init__(self, trunk: nn.Module, start: int, end: int) -> None:
        self.trunk = trunk
        self.start = start
        self.end = end
        self.shapes: list[tuple[int, ...] | None] = []
        """Of the tensors that enter this stage, without [batch, tokens]; None for one that there is not."""
        self.received: list[mx.array | None] = []

    def list_tensors(self, call: LayerCall) -> list[mx.array | None]:
        """What a layer is called with that the layers before it made: each [batch, tokens, ...]."""
        return [call.first]

    def answer(self, _call: LayerCall) -> Any:
        """What the loop gets from a layer before `start`. Only what it gets from the last of them is used."""
        return self.received[0]

    def list_cached_layers(self) -> frozenset[int]:
        """Layers before `start` whose caches this stage keeps too."""
        return frozenset()

    def prepare(self, _layers: Sequence[nn.Module]) -> None:
        """Change what else a stage needs changed, once all is hidden that it does not hold."""

    def watch(self, call: LayerCall) -> None:
        """See a layer being called in the whole model, before all is hidden that the stage does not hold."""
        if call.index == self.start:
            self.shapes = [None if one is None else one.shape[2:] for one in self.list_tensors(call)]

    @property
    def width(self) -> int:
        """Of the activation that enters this stage."""
        return sum(prod(shape) for shape in self.shapes if shape is not None)

    def receive(self, activation: mx.array) -> None:
        """Take in what the stage before packed, [batch, tokens, width]; the calls of the layers before `start` follow."""
        shapes = [shape for shape in self.shapes if shape is not None]
        ends = list(accumulate(prod(shape) for shape in shapes))
        pieces = mx.split(activation, ends[:-1], axis=-1) if len(shapes) > 1 else [activation]
        tensors = iter(
            piece if len(shape) == 1 else piece.reshape(*piece.shape[:2], *shape)
            for piece, shape in zip(pieces, shapes, strict=True)
        )
        self.received = [None if shape is None else next(tensors) for shape in self.shapes]

    def pack(self, call: LayerCall) -> mx.array:
        """What the layer after the stage's last one was called with, for the stage that holds it: [batch, tokens, width]."""
        tensors = [one for one in self.list_tensors(call) if one is not None]
        if len(tensors) == 1 and tensors[0].ndim == 3:
            return tensors[0]
        return mx.concatenate([one.reshape(*one.shape[:2], -1) for one in tensors], axis=-1)
