"""Why the links of an epoch broke: a lost node, a runner that ended, or the link itself. Pure."""

from collections.abc import Iterator
from enum import Enum, auto

from paceline_control_plane.topology.condition import Condition
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import Shard
from paceline_services.domain.runners import RunnerState
from paceline_services.ids import NodeId

_RUNS = {RunnerState.LOADED, RunnerState.READY, RunnerState.BROKEN}


class Cause(Enum):
    """In the order in which they are believed."""

    NODE = auto()
    """The neighbour's node is gone, or its agent has gone silent."""
    RUNNER = auto()
    """The neighbour's node is there and its runner of the epoch is not: it failed, or its agent was started anew."""
    LINK = auto()
    """Both neighbours live, and each says that it lost the other."""
    UNKNOWN = auto()
    """A neighbour says nothing yet."""


def find_cause(view: ClusterView, condition: Condition) -> Cause:
    """Why the epoch's links broke, as far as that can be told."""
    causes = {_judge(view, shard, lost) for shard, lost in _losses(condition)}
    return next((cause for cause in Cause if cause in causes), Cause.UNKNOWN)


def suspect_links(view: ClusterView, condition: Condition) -> frozenset[frozenset[NodeId]]:
    """Pairs of nodes that live and of which one lost the other: nothing but the link between them can be blamed so far."""
    return frozenset(
        frozenset({shard.placement.node_id, lost.placement.node_id})
        for shard, lost in _losses(condition)
        if _lost_place(shard) is not None and _is_suspect(view, shard, lost)
    )


def _losses(condition: Condition) -> Iterator[tuple[Shard, Shard]]:
    """Each BROKEN shard with the neighbour that it lost; with every other shard where it does not say which."""
    for shard in condition.shards:
        if shard.runner is None or shard.runner.state is not RunnerState.BROKEN:
            continue
        for other in condition.shards:
            if other is not shard and _lost_place(shard) in {None, _place(other)}:
                yield shard, other


def _judge(view: ClusterView, shard: Shard, lost: Shard) -> Cause:
    if view.is_silent(lost.placement.node_id):
        return Cause.NODE
    if lost.runner is None or lost.runner.state not in _RUNS:
        return Cause.RUNNER
    is_mutual = _lost_place(lost) == _place(shard) and _lost_place(shard) is not None
    return Cause.LINK if is_mutual else Cause.UNKNOWN


def _is_suspect(view: ClusterView, shard: Shard, lost: Shard) -> bool:
    """Whether the link may be to blame. A neighbour that broke because of a third one gave up its links for that."""
    cause = _judge(view, shard, lost)
    is_follower = lost.runner is not None and lost.runner.state is RunnerState.BROKEN
    return cause is Cause.LINK or (cause is Cause.UNKNOWN and not is_follower)


def _place(shard: Shard) -> tuple[int, int]:
    """Stage and rank."""
    return shard.placement.stage, shard.placement.rank


def _lost_place(shard: Shard) -> tuple[int, int] | None:
    """Stage and rank that a BROKEN shard says it lost: one of its own stage, or rank 0 of a neighbouring one."""
    runner = shard.runner
    if runner is None or runner.state is not RunnerState.BROKEN:
        return None
    if runner.lost_rank is not None:
        return shard.placement.stage, runner.lost_rank
    return (runner.lost_stage, 0) if runner.lost_stage is not None else None
