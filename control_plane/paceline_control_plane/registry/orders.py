"""What a node must do, from the view: the full set each time, so that an agent that missed an order misses nothing. Pure."""

from collections.abc import Iterator

from paceline_control_plane.topology.view import ClusterView, sources_of
from paceline_services.domain.instances import Assignment, InstanceRecord, InstanceSpec
from paceline_services.domain.models import ModelSource
from paceline_services.domain.runners import RunnerState, ShardAssignment
from paceline_services.ids import Epoch, ModelId, NodeId


def wanted_shards(view: ClusterView, node_id: NodeId) -> tuple[ShardAssignment, ...]:
    """Every shard that the node must run, at the epochs of the view."""
    return tuple(
        shard
        for instance_id, stored in sorted(view.assignments.items())
        if view.is_current(instance_id)
        for shard in _shards_of(view, stored.value, view.specs[instance_id].value, node_id)
    )


def held_records(view: ClusterView, node_id: NodeId) -> tuple[InstanceRecord, ...]:
    """What is stored of every instance that the node takes part in, for it to keep."""
    return tuple(
        view.record(instance_id)
        for instance_id, stored in sorted(view.assignments.items())
        if view.is_current(instance_id) and any(shard.node_id == node_id for shard in stored.value.shards)
    )


def wanted_models(view: ClusterView) -> tuple[ModelSource, ...]:
    """Every model that each node must have: those of wanted instances and their drafts, from where they are known to come."""
    wanted: dict[ModelId, ModelSource] = {}
    for source in (source for _, spec in sorted(view.specs.items()) for source in sources_of(spec.value)):
        known = view.models.get(source.model_id)
        located = known.value.source if known and not source.location else source
        before = wanted.get(source.model_id)
        if before is None or not before.location:
            wanted[source.model_id] = located
    return tuple(wanted[model_id] for model_id in sorted(wanted))


def _shards_of(
    view: ClusterView, assignment: Assignment, spec: InstanceSpec, node_id: NodeId
) -> Iterator[ShardAssignment]:
    epoch = view.epoch(assignment.instance_id)
    head = len(assignment.shards) - 1
    for shard in assignment.shards:
        if shard.node_id == node_id:
            draft = spec.draft if shard.stage == head else None
            yield ShardAssignment(
                assignment.instance_id,
                epoch,
                spec.source.model_id,
                stage=shard.stage,
                num_stages=len(assignment.shards),
                start_layer=shard.start_layer,
                end_layer=shard.end_layer,
                context_length=assignment.context_length,
                next_address=_next_address(view, assignment, epoch, shard.stage),
                precision=spec.precision,
                kv_cache_bytes=shard.kv_cache_bytes,
                kv_bits=spec.kv_bits,
                draft_model_id=draft.model_id if draft else ModelId(""),
            )


def _next_address(view: ClusterView, assignment: Assignment, epoch: Epoch, stage: int) -> str:
    """Where the next stage listens at this epoch (stage 0 for the head); empty while unknown, or when there is one stage."""
    if len(assignment.shards) == 1:
        return ""
    following = assignment.shards[(stage + 1) % len(assignment.shards)]
    runner = view.runner(following.node_id, assignment.instance_id, epoch, following.stage)
    return runner.address if runner and runner.state is not RunnerState.FAILED else ""
