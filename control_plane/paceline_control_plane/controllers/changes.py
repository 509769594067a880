"""Decides the next changes of the cluster's state: the pure core of the leader.

Everything follows from the view, the time and the leader's memory, so deciding twice decides the same. A healthy instance is never
moved: only a lost node, a failed or broken runner, or a refusal that no longer holds leads to a new assignment. While no node is up at
all nothing is decided: what was placed comes back with its nodes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from paceline_control_plane.controllers.capacity import demand_of, ready_candidates
from paceline_control_plane.controllers.memory import Memory
from paceline_control_plane.placement.planner import Placement, Refusal, plan_at_most, plan_pipeline
from paceline_control_plane.topology.condition import Condition, examine
from paceline_control_plane.topology.view import ClusterView, Stored, sources_of
from paceline_services.domain.instances import Assignment, InstanceSpec
from paceline_services.domain.models import KnownModel, ModelSource, NodeModelState
from paceline_services.ids import Epoch, InstanceId, ModelId, NodeId, Revision


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the leader waits before it acts, in seconds.

    lease_s: a node's lease. node_grace_s: for a node that is gone to come back. broken_s: for a broken link to turn out to be a
    lost node or a failed runner. stable_s: READY for this long ends a row of failures. Pauses after failures are
    1, 2, 4 ... max_pause_s.
    """

    lease_s: float = 5.0
    node_grace_s: float = 2.0
    broken_s: float = 6.0
    stable_s: float = 30.0
    max_pause_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """Seconds between failure number `failures` in a row and the next try."""
        return min(self.max_pause_s, 2.0 ** max(0, failures - 1))


@dataclass(frozen=True, slots=True)
class Assign:
    """Store an assignment over the one of the given revision (0: there is none)."""

    assignment: Assignment
    over: Revision


@dataclass(frozen=True, slots=True)
class Unassign:
    """Delete the assignment of an instance that nobody wants any more, or that was wanted anew under the same id."""

    instance_id: InstanceId
    over: Revision


@dataclass(frozen=True, slots=True)
class LearnModel:
    """Store what is known of a model over the record of the given revision (0: there is none)."""

    model: KnownModel
    over: Revision


Change = Assign | Unassign | LearnModel


@dataclass(frozen=True, slots=True)
class Decision:
    """Changes to make now, and when to decide again even if nothing happens; wake_at is None when only an event matters."""

    changes: tuple[Change, ...]
    wake_at: float | None = None


def next_changes(view: ClusterView, now: float, memory: Memory, patience: Patience) -> Decision:
    """What to change now. memory must have seen the view (memory.remember)."""
    decisions = [_decide(view, instance_id, now, memory, patience) for instance_id in sorted(view.specs)]
    changes = _one_placement(change for decision in decisions for change in decision.changes)
    wake_times = [decision.wake_at for decision in decisions if decision.wake_at is not None]
    forgotten = [
        Unassign(instance_id, stored.revision)
        for instance_id, stored in sorted(view.assignments.items())
        if not view.is_current(instance_id)
    ]
    return Decision((*_learn_models(view), *forgotten, *changes), min(wake_times, default=None))


def _one_placement(changes: Iterable[Change]) -> Iterator[Change]:
    """All changes but further placements: those must see what the first one takes, in the view that it makes."""
    is_placed = False
    for change in changes:
        places = isinstance(change, Assign) and bool(change.assignment.shards)
        if not (places and is_placed):
            yield change
        is_placed = is_placed or places


def _decide(view: ClusterView, instance_id: InstanceId, now: float, memory: Memory, patience: Patience) -> Decision:
    spec, stored = view.specs[instance_id].value, view.assignments.get(instance_id)
    if not view.nodes:
        # Nothing can run anywhere. What was placed stays placed, so that it comes back with its nodes.
        return Decision(())
    if stored is not None and not view.is_current(instance_id):
        return Decision(())  # it is deleted first
    if stored is None:
        return _place_first(view, spec, None)
    if stored.value.shards:
        return _recover(view, stored, now, memory, patience)
    if stored.value.last_failure:
        return _assign(view, stored, stored.value)
    return _place_first(view, spec, stored)


def _place_first(view: ClusterView, spec: InstanceSpec, stored: Stored[Assignment] | None) -> Decision:
    """Place an instance that never ran, once every node that is up has its models or cannot have them."""
    for source in sources_of(spec):
        ready, failed = (
            view.nodes_with(source.model_id, state) for state in (NodeModelState.READY, NodeModelState.FAILED)
        )
        if {*ready, *failed} != set(view.nodes):
            return Decision(())
    return _write_plan(view, spec, stored, Assignment(spec.instance_id), may_shrink=False)


def _recover(view: ClusterView, stored: Stored[Assignment], now: float, memory: Memory, patience: Patience) -> Decision:
    """Place an instance anew when its epoch is over, after the pause that the kind of trouble asks for."""
    assignment, epoch = stored.value, Epoch(stored.revision)
    condition = examine(view, assignment, epoch)
    if not condition.trouble:
        return Decision(())
    key = (assignment.instance_id, epoch)
    began = _trouble_time(condition, key, memory)
    failures = 0 if began - memory.ready_since.get(key, began) >= patience.stable_s else assignment.num_failures
    if condition.missing_nodes:
        due = _loss_time(condition, memory, patience)
        failed = replace(assignment, num_failures=failures, last_failure=condition.trouble)
    else:
        due = _failure_time(condition, key, failures + 1, memory, patience)
        failed = replace(assignment, num_failures=failures + 1, last_failure=condition.trouble)
    return _assign(view, stored, failed) if now >= due else Decision((), due)


def _loss_time(condition: Condition, memory: Memory, patience: Patience) -> float:
    """When the first missing node counts as lost. Where all had to join again, at a restart, each is given the time to."""
    missing_since = min(memory.missing_since[node_id] for node_id in condition.missing_nodes)
    return max(missing_since + patience.node_grace_s, memory.settling_since + patience.lease_s + patience.node_grace_s)


def _failure_time(
    condition: Condition, key: tuple[InstanceId, Epoch], failures: int, memory: Memory, patience: Patience
) -> float:
    """When to try again after a runner FAILED or a link broke."""
    if condition.failed:
        return memory.failed_since[key] + patience.pause_s(failures)
    return memory.broken_since[key] + max(patience.broken_s, patience.pause_s(failures))


def _trouble_time(condition: Condition, key: tuple[InstanceId, Epoch], memory: Memory) -> float:
    """When the trouble began."""
    missing = [memory.missing_since[node_id] for node_id in condition.missing_nodes]
    return min([*missing, *(since[key] for since in (memory.failed_since, memory.broken_since) if key in since)])


def _assign(view: ClusterView, stored: Stored[Assignment], before: Assignment) -> Decision:
    """Place an instance that ran before: on fewer nodes than wanted, if that is what is left."""
    spec = view.specs[before.instance_id].value
    return _write_plan(view, spec, stored, before, may_shrink=True)


def _write_plan(
    view: ClusterView,
    spec: InstanceSpec,
    stored: Stored[Assignment] | None,
    before: Assignment,
    *,
    may_shrink: bool,
) -> Decision:
    """The plan as an assignment, if it says anything new. Failures are taken over from before."""
    plan = _plan(view, spec, may_shrink=may_shrink)
    if isinstance(plan, Placement):
        wanted = replace(before, shards=plan.shards, context_length=plan.context_length, refusal="")
    else:
        wanted = replace(before, shards=(), context_length=0, refusal=plan.message)
    if stored and wanted == stored.value and not wanted.shards:
        return Decision(())
    return Decision((Assign(wanted, stored.revision if stored else Revision(0)),))


def _plan(view: ClusterView, spec: InstanceSpec, *, may_shrink: bool) -> Placement | Refusal:
    candidates, demand = ready_candidates(view, spec), demand_of(view, spec)
    if demand is None or not candidates:
        return Refusal(_explain_absence(view, spec))
    if may_shrink and spec.num_stages:
        return plan_at_most(demand, candidates, spec.num_stages)
    plan = plan_pipeline(demand, candidates, spec.num_stages)
    if isinstance(plan, Refusal) and len(candidates) < spec.num_stages:
        return Refusal(plan.message + _list_failures(view, spec))
    return plan


def _explain_absence(view: ClusterView, spec: InstanceSpec) -> str:
    """Why no node that is up has the model, or the draft beside it."""
    names = " and ".join(source.model_id for source in sources_of(spec))
    if failures := _list_failures(view, spec):
        return f"no node has {names}{failures}"
    return f"no node that is up has {names} yet: it is placed as soon as one has it"


def _list_failures(view: ClusterView, spec: InstanceSpec) -> str:
    return "".join(
        f"; {node_id}: {_failure_message(view, node_id, source.model_id)}"
        for source in sources_of(spec)
        for node_id in view.nodes_with(source.model_id, NodeModelState.FAILED)
    )


def _failure_message(view: ClusterView, node_id: NodeId, model_id: ModelId) -> str:
    model = view.node_model(node_id, model_id)
    return (model.failure_message if model else "") or "it cannot be fetched"


def _learn_models(view: ClusterView) -> Iterator[LearnModel]:
    """Models whose card or source is known by now but not stored."""
    wanted: dict[ModelId, ModelSource] = {}
    for _, stored_spec in sorted(view.specs.items(), reverse=True):
        for source in sources_of(stored_spec.value):
            if source.location or source.model_id not in wanted:
                wanted[source.model_id] = source
    reported = {model.model_id for node_id in view.nodes for model in view.report(node_id).models}
    for model_id in sorted(reported | view.models.keys()):
        stored, card = view.models.get(model_id), view.card(model_id)
        source = wanted.get(model_id, ModelSource(model_id))
        if not source.location and stored:
            source = stored.value.source
        model = KnownModel(source, card)
        if card and (stored is None or stored.value != model):
            yield LearnModel(model, stored.revision if stored else Revision(0))
