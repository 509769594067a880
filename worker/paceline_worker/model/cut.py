"""A model that runs one stage's layers only: mlx-lm's own code, with what other stages hold out of its way.

Every part stays where mlx-lm's code looks for it, so that all that goes by a layer's index or asks for its attributes stays right.
What a stage does not hold is hidden: it is no parameter any more, is not read, counted or evaluated. What the model computes before its
first layer on later stages is a graph that nobody evaluates (so it may scale, normalise and add what it likes); there the layers before
the stage's first one answer with the activation that was handed in. The layer after the stage's last one is not run: being called, it
ends the forward, and what it was called with is the stage's activation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from paceline_worker.model.anatomy import Anatomy, ModelPart, Phase, holds_weights
from paceline_worker.model.caches import CachePlan, plan_caches
from paceline_worker.model.families.handoff import Cache, Handoff, LayerCall
from paceline_worker.model.ranges import ShardRange


class HandedOut(Exception):
    """Ends a forward early: with the activation for the next stage, or with what stands for the work of the last one."""

    def __init__(self, activation: mx.array) -> None:
        super().__init__()
        self.activation = activation


class CutModel:
    """A model as one stage runs it. anatomy: as it was before the cut, None where it is whole and could not be watched."""

    def __init__(
        self, model: nn.Module, shard: ShardRange, trunk: nn.Module, anatomy: Anatomy | None, handoff: Handoff
    ) -> None:
        self.model = model
        self.shard = shard
        self.trunk = trunk
        self.anatomy = anatomy
        self.handoff = handoff
        self._caches: Sequence[Cache] = ()

    def __call__(self, inputs: mx.array, caches: Sequence[Cache]) -> mx.array:
        """Run the stage. inputs: token ids [batch, tokens] on the first one, an activation [batch, tokens, width] on later ones.

        caches: one for each of the whole model's. Returns logits [batch, tokens, vocab] or what HandedOut ended it with.
        """
        if not self.shard.is_first:
            self.handoff.receive(inputs)
            inputs = mx.zeros(inputs.shape[:2], mx.int32)
        self._caches = caches
        try:
            return self.model(inputs, cache=list(caches))
        except HandedOut as ended:
            return ended.activation
        finally:
            self._caches = ()

    def plan_caches(self, whole: Sequence[Cache]) -> CachePlan:
        """Which of the model's caches are this stage's. whole: all of them, new."""
        every = frozenset(range(len(whole)))
        anatomy, shard = self.anatomy, self.shard
        if anatomy is None or shard.num_stages == 1:
            return plan_caches(whole, every, every)
        of_layers = anatomy.list_caches(range(len(anatomy.layers)))
        held = anatomy.list_caches({*range(shard.start_layer, shard.end_layer), *self.handoff.list_cached_layers()})
        return plan_caches(whole, held | (every - of_layers) if shard.is_first else held, of_layers)

    def answer(self, index: int, args: Sequence[Any], named: dict[str, Any]) -> Any:
        return self.handoff.answer(LayerCall(index, args, named, self._caches))

    def hand_out(self, index: int, args: Sequence[Any], named: dict[str, Any]) -> Any:
        raise HandedOut(self.handoff.pack(LayerCall(index, args, named, self._caches)))


def cut(cut_model: CutModel, hide_part: Callable[[nn.Module], None]) -> None:
    """Hide all that the stage does not hold. hide_part: called with every module that the model may still call without evaluating it."""
    shard, anatomy = cut_model.shard, cut_model.anatomy
    if shard.num_stages == 1 or anatomy is None:
        return
    for part in anatomy.parts:
        if not holds(shard, part):
            value = part.owner[part.key]
            _hide(part.owner, part.key)
            for module in value if isinstance(value, list) else [value]:
                if isinstance(module, nn.Module):
                    hide_part(module)
    for index, layer in enumerate(anatomy.layers):
        if not shard.holds(index):
            stand_in = cut_model.answer if index < shard.start_layer else cut_model.hand_out
            _make_stand_in(layer, index, stand_in)
    cut_model.handoff.prepare(anatomy.layers)


def holds(shard: ShardRange, part: ModelPart) -> bool:
    """Whether a stage needs a part that is no layer."""
    wanted = Phase.AMONG
    if shard.is_first:
        wanted |= Phase.BEFORE
    if shard.is_last:
        wanted |= Phase.AFTER
    return bool(part.phase & wanted)


def _make_stand_in(layer: nn.Module, index: int, answer: Callable[[int, Sequence[Any], dict[str, Any]], Any]) -> None:
    """Let a layer answer so when it is called. It keeps its kind and its attributes, for loops that ask for them."""
    for key in [key for key, value in layer.items() if holds_weights(value)]:
        _hide(layer, key)
    own = type(layer)

    def call(_: Any, *args: Any, **named: Any) -> Any:
        return answer(index, args, named)

    layer.__class__ = type(f"Absent{own.__name__}", (own,), {"__call__": call, "__module__": own.__module__})


def _hide(module: nn.Module, key: str) -> None:
    """Keep something as a plain attribute, which is no part of a module for MLX."""
    object.__setattr__(module, key, module.pop(key))
