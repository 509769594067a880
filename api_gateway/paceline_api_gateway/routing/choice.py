"""The choice of an instance and what to say when there is none. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from paceline_services.domain.instances import Instance, InstanceState
from paceline_services.domain.nodes import ClusterState
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId

AFFINITY_SLACK = 4
"""So many sequences more than the least loaded one an instance may have and still get the prompts that it knows."""
_HOPELESS = {InstanceState.UNPLACEABLE, InstanceState.FAILED}


@dataclass(frozen=True, slots=True)
class Coming:
    """An instance that may soon answer; message tells how far it is."""

    message: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A known model without an instance."""


class Affinity(StrEnum):
    """Whether a request goes where its prompt's beginning is known."""

    HIT = "hit"
    MISS = "miss"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Choice:
    """An instance, and why it; affinity is None where there was only one."""

    instance: Instance
    affinity: Affinity | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """How busy the instances are when one is chosen."""

    loads: Mapping[InstanceId, int] = field(default_factory=dict)
    """Sequences on each."""
    turns: Mapping[InstanceId, int] = field(default_factory=dict)
    """When each was last chosen, as a number that grows; absent: never."""

    def load(self, instance: Instance) -> int:
        return self.loads.get(instance.spec.instance_id, 0)

    def rank(self, instance: Instance) -> tuple[int, int, str]:
        """The lowest is least loaded; among equals, has waited longest."""
        name = instance.spec.instance_id
        return self.load(instance), self.turns.get(name, 0), name


def list_active(state: ClusterState, model_id: ModelId) -> list[Instance]:
    """The instances of the model that answer now."""
    return [one for one in _list_instances(state, model_id) if one.state is InstanceState.ACTIVE]


def leave_out_failed(active: Sequence[Instance], failed: Collection[str]) -> Sequence[Instance]:
    """Those whose heads have not failed a request; all of them when every one has. failed: addresses of heads."""
    return [one for one in active if one.head_address not in failed] or active


def choose_instance(active: Sequence[Instance], knowing: Collection[InstanceId], traffic: Traffic) -> Choice:
    """The best of one or more ACTIVE instances for a request whose prompt's beginning some of them know.

    That is one that knows it, unless it is AFFINITY_SLACK busier than the least loaded; of several, the least loaded.
    """
    least = min(active, key=traffic.rank)
    if len(active) == 1:
        return Choice(least)
    if not (knowers := [one for one in active if one.spec.instance_id in knowing]):
        return Choice(least, Affinity.MISS)
    best = min(knowers, key=traffic.rank)
    if traffic.load(best) > traffic.load(least) + AFFINITY_SLACK:
        return Choice(least, Affinity.OVERLOADED)
    return Choice(best, Affinity.HIT)


def explain_absence(state: ClusterState, model_id: ModelId) -> Coming | Absent:
    """What is to be said of a model without an ACTIVE instance.

    Raises NotFoundError for a model that the cluster does not know, UnavailableError when no instance can come up.
    """
    instances = _list_instances(state, model_id)
    coming = [instance for instance in instances if instance.state not in _HOPELESS]
    if coming:
        return Coming(f"{coming[0].state.value}, {coming[0].progress:.0%} done: {coming[0].message or 'starting'}")
    if instances:
        raise UnavailableError(f"{model_id} cannot run now: {instances[0].message}", reason="INSTANCE_UNAVAILABLE")
    known = list_models(state)
    if model_id not in known:
        there = ", ".join(known) or "none yet; place one with `paceline place`"
        raise NotFoundError(f"the model {model_id!r} does not exist here. Models: {there}", reason="MODEL_NOT_FOUND")
    return Absent()


def list_models(state: ClusterState) -> dict[ModelId, bool]:
    """Every known model by id, and whether an instance of it is wanted."""
    wanted = {instance.spec.source.model_id for instance in state.instances}
    names = {model.source.model_id for model in state.models} | wanted
    return {name: name in wanted for name in sorted(names)}


def _list_instances(state: ClusterState, model_id: ModelId) -> list[Instance]:
    return [instance for instance in state.instances if instance.spec.source.model_id == model_id]
