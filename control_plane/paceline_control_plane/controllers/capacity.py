"""Which nodes may take part in an instance, and what memory is free there for it. Pure."""

from paceline_control_plane.placement.planner import Candidate
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import ShardPlacement
from paceline_services.domain.models import NodeModelState
from paceline_services.domain.runners import RunnerReport, RunnerState
from paceline_services.ids import Epoch, InstanceId, ModelId, NodeId


def ready_candidates(view: ClusterView, model_id: ModelId, instance_id: InstanceId) -> tuple[Candidate, ...]:
    """Nodes that are up and have the model whole, with what is free there for the instance."""
    nodes = view.nodes_with(model_id, NodeModelState.READY)
    return tuple(Candidate(node_id, free_bytes(view, node_id, instance_id)) for node_id in nodes)


def all_candidates(view: ClusterView) -> tuple[Candidate, ...]:
    """Every node that is up, with what is free there for an instance that does not exist yet."""
    return tuple(Candidate(node_id, free_bytes(view, node_id, InstanceId(""))) for node_id in sorted(view.nodes))


def free_bytes(view: ClusterView, node_id: NodeId, instance_id: InstanceId) -> int:
    """Bytes that a new assignment of the instance may count on at a node; negative when others are promised more than there is.

    That is what is available beyond all runners, plus what the instance's own runners hold (they will be replaced), minus what
    other instances were promised there and do not hold yet.
    """
    report = view.report(node_id)
    own = sum(_held_bytes(runner) for runner in report.runners if runner.instance_id == instance_id)
    promised = sum(
        max(0, shard.planned_bytes - _held_by(report.runners, other, view.epoch(other), shard))
        for other, stored in view.assignments.items()
        if other != instance_id and view.is_current(other)
        for shard in stored.value.shards
        if shard.node_id == node_id
    )
    free = report.available_memory_bytes + own - promised
    stored_node = view.nodes.get(node_id)
    total = stored_node.value.inventory.total_memory_bytes if stored_node else 0
    return min(free, total) if total else free


def _held_by(runners: tuple[RunnerReport, ...], instance_id: InstanceId, epoch: Epoch, shard: ShardPlacement) -> int:
    """Bytes that the shard's runner of this epoch holds already."""
    mine = (instance_id, epoch, shard.stage)
    return sum(_held_bytes(runner) for runner in runners if (runner.instance_id, runner.epoch, runner.stage) == mine)


def _held_bytes(runner: RunnerReport) -> int:
    """Bytes that a runner's process holds; a FAILED one has ended."""
    return 0 if runner.state is RunnerState.FAILED else max(runner.resident_bytes, runner.loaded_bytes)
