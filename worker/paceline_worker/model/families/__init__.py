"""What the layers of a family hand on beside one tensor, by mlx-lm's module that has the loop over them."""

from mlx import nn

from paceline_worker.model.families.handoff import Handoff

_HANDOFFS: dict[str, type[Handoff]] = {}


def find_handoff(trunk: nn.Module) -> type[Handoff]:
    """trunk: the module that calls the layers."""
    return _HANDOFFS.get(type(trunk).__module__.rpartition(".")[2], Handoff)


__all__ = ["Handoff", "find_handoff"]
