"""Plans one instance on the cluster as it is: on nodes and links that are trusted where that is possible, else on what there is. Pure."""

from dataclasses import replace

from paceline_control_plane.controllers.capacity import (
    demand_of,
    ready_candidates,
    with_less_memory,
    without_failing,
)
from paceline_control_plane.controllers.decision import Assign, Decision
from paceline_control_plane.controllers.memory import Pair
from paceline_control_plane.placement.arranging import Leaning
from paceline_control_plane.placement.planner import (
    Candidate,
    Demand,
    Placement,
    Refusal,
    plan_at_most,
    plan_pipeline,
)
from paceline_control_plane.topology.view import ClusterView, Stored, sources_of
from paceline_services.domain.instances import Assignment, InstanceSpec
from paceline_services.domain.models import NodeModelState
from paceline_services.ids import ModelId, NodeId, Revision

Plan = Placement | Refusal


def plan_first(view: ClusterView, spec: InstanceSpec, before: Assignment) -> Plan:
    """For an instance that never ran: on as many stages as are wanted, or not at all."""
    candidates, demand = ready_candidates(view, spec), demand_of(view, spec)
    if demand is None or not candidates:
        return Refusal(_explain_absence(view, spec))
    plan = plan_pipeline(demand, candidates, spec.num_stages, Leaning(before.shards))
    if isinstance(plan, Refusal) and len(candidates) < spec.num_stages:
        return Refusal(plan.message + _list_failures(view, spec))
    return plan


def plan_again(view: ClusterView, before: Assignment, avoided: frozenset[Pair]) -> Plan:
    """For an instance that ran: on fewer stages than wanted, if that is what is left, with as few moves as possible.

    Nodes on which it failed often, and links that broke, are used only where nothing else does.
    """
    spec = view.specs[before.instance_id].value
    candidates, demand = with_less_memory(ready_candidates(view, spec), before.shard_failures), demand_of(view, spec)
    if demand is None or not candidates:
        return Refusal(_explain_absence(view, spec))
    trusted = without_failing(candidates, before.shard_failures)
    refused = ""
    for links in (avoided, frozenset[Pair]()):
        for nodes in (trusted, candidates):
            plan = _plan_stages(demand, nodes, spec, Leaning(before.shards, links))
            if isinstance(plan, Placement):
                return plan
            refused = plan.message
    if any(failure.is_out_of_memory for failure in before.shard_failures):
        refused += ". Less than is free counts where a runner was ended for lack of memory"
    return Refusal(refused)


def plan_growth(view: ClusterView, before: Assignment, avoided: frozenset[Pair]) -> Placement | None:
    """A placement on more stages, up to those wanted, over nodes and links that are trusted; None where there is none."""
    spec = view.specs[before.instance_id].value
    if len(before.shards) >= min(spec.num_stages or len(view.usable_nodes), len(view.usable_nodes)):
        return None
    candidates, demand = with_less_memory(ready_candidates(view, spec), before.shard_failures), demand_of(view, spec)
    if demand is None:
        return None
    trusted = without_failing(candidates, before.shard_failures)
    plan = _plan_stages(demand, trusted, spec, Leaning(before.shards, avoided))
    return plan if isinstance(plan, Placement) and len(plan.shards) > len(before.shards) else None


def write_plan(view: ClusterView, plan: Plan, stored: Stored[Assignment] | None, before: Assignment) -> Decision:
    """The plan as an assignment at a new epoch, if it says anything new. Failures are taken over from before."""
    if isinstance(plan, Placement):
        wanted = replace(before, shards=plan.shards, context_length=plan.context_length, refusal="")
    else:
        wanted = replace(before, shards=(), context_length=0, refusal=plan.message)
    if stored and replace(wanted, epoch=stored.value.epoch) == stored.value and not wanted.shards:
        return Decision()
    wanted = replace(wanted, epoch=view.next_epoch(before.instance_id))
    return Decision((Assign(wanted, stored.revision if stored else Revision(0)),))


def _plan_stages(demand: Demand, nodes: tuple[Candidate, ...], spec: InstanceSpec, leaning: Leaning) -> Plan:
    return plan_at_most(demand, nodes, spec.num_stages or len(nodes), leaning)


def _explain_absence(view: ClusterView, spec: InstanceSpec) -> str:
    """Why no usable node has the model, or the draft beside it."""
    names = " and ".join(source.model_id for source in sources_of(spec))
    if failures := _list_failures(view, spec):
        return f"no node has {names}{failures}"
    if view.nodes and not view.usable_nodes:
        return f"every node that is up is to be emptied or silent: `paceline drain NODE --undo` lets {names} use one"
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
