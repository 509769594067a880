"""What the ranks of a group find together: sums of what each of them has, and whether something holds on all of them.

Every rank must call these the same number of times, in the same order. How a sum is made inside joined layers is the same (Work::add_ranks
in primitives/layers.cpp): a layer gives the same bits either way.
"""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx import nn

Group = mx.distributed.Group


def sum_over_ranks(x: mx.array, group: Group) -> mx.array:
    """The sum of every rank's x: the same bits on all ranks, and for a row of x whatever other rows it comes with.

    Added up in the order of ranks. all_sum promises neither: a ring of three begins the sum of each third of an array at another rank, so
    which order a value's sum has depends on where it lies. For two ranks this moves as many bytes as all_sum, in half as many turns; for n
    it moves n / 2 times as many.
    """
    if group.size() == 1:
        return x
    parts = mx.distributed.all_gather(x[None], group=group)
    total = parts[0]
    for rank in range(1, group.size()):
        total = total + parts[rank]
    return total


def holds_everywhere(is_so: bool, group: Group | None) -> bool:  # noqa: FBT001  (what is asked about)
    """Whether it is so on every rank; without a group: whether it is so."""
    if group is None:
        return is_so
    return bool((mx.distributed.all_sum(mx.array(int(is_so)), group=group) == group.size()).item())


def find_group(layers: Iterable[nn.Module]) -> Group | None:
    """The group over which linear layers in there sum their results (their attribute `group`); None where there is none."""
    groups = (group_of(module) for layer in layers for _, module in layer.named_modules())
    return next((group for group in groups if group is not None), None)


def group_of(module: Any) -> Group | None:
    """The group of several ranks over which a module's results are summed."""
    group = getattr(module, "group", None)
    return group if isinstance(group, Group) and group.size() > 1 else None
