"""The choice of an instance and what to say when there is none. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from paceline_services.domain.instances import Instance, InstanceState
from paceline_services.domain.nodes import ClusterState
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId

_HOPELESS = {InstanceState.UNPLACEABLE, InstanceState.FAILED}


@dataclass(frozen=True, slots=True)
class Ready:
    """An instance that answers now."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Coming:
    """An instance that may soon answer; message tells how far it is."""

    message: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A known model without an instance."""


Choice = Ready | Coming | Absent


def choose_instance(
    state: ClusterState, model_id: ModelId, in_flight: Mapping[InstanceId, int], failed: Collection[str] = ()
) -> Choice:
    """The ACTIVE instance of the model with the fewest requests in flight here.

    failed: addresses of heads that failed this request; they are taken again only when there is no other.

    Raises NotFoundError for a model that the cluster does not know, UnavailableError when no instance can come up.
    """
    instances = [instance for instance in state.instances if instance.spec.source.model_id == model_id]
    active = [instance for instance in instances if instance.state is InstanceState.ACTIVE]
    if active:
        return Ready(min(active, key=lambda one: _rank(one, in_flight, failed)))
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


def _rank(instance: Instance, in_flight: Mapping[InstanceId, int], failed: Collection[str]) -> tuple[bool, int, str]:
    name = instance.spec.instance_id
    return instance.head_address in failed, in_flight.get(name, 0), name


def list_models(state: ClusterState) -> dict[ModelId, bool]:
    """Every known model by id, and whether an instance of it is wanted."""
    wanted = {instance.spec.source.model_id for instance in state.instances}
    names = {model.source.model_id for model in state.models} | wanted
    return {name: name in wanted for name in sorted(names)}
