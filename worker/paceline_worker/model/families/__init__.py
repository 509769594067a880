"""What the layers of a family hand on beside one tensor, by mlx-lm's module that has the loop over them."""

from mlx import nn

from paceline_worker.model.families.handoff import Handoff
from paceline_worker.model.families.shared_keys import HandedKeys, SharedKeys, StackedStreams
from paceline_worker.model.families.tuples import Eager, EveryLayersInput, FirstValues, ProjectedKeys, ResidualStream

_HANDOFFS: dict[str, type[Handoff]] = {
    "afm7": SharedKeys,
    "dbrx": Eager,
    "gemma3n": StackedStreams,
    "gemma4_text": HandedKeys,
    "hunyuan": ProjectedKeys,
    "kimi_k3": ResidualStream,
    "rwkv7": FirstValues,
    "talkie": EveryLayersInput,
}


def find_handoff(trunk: nn.Module) -> type[Handoff]:
    """trunk: the module that calls the layers."""
    return _HANDOFFS.get(type(trunk).__module__.rpartition(".")[2], Handoff)


__all__ = ["Handoff", "find_handoff"]
